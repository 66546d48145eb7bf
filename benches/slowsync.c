/* A disk whose syncs take MORE_NS nanoseconds more, as those of a cloud do. Preloaded into the real binary. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

static void wait_for_it(void) {
    struct timespec more = {0, MORE_NS};
    nanosleep(&more, NULL);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fsync(int fd) {
    REAL(fsync);
    wait_for_it();
    return real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    wait_for_it();
    return real(fd);
}
