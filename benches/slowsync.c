/* A disk whose syncs take a millisecond more, as those of a cloud do. Preloaded into the real binary. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

static void wait_for_it(void) {
    struct timespec millisecond = {0, 1000000};
    nanosleep(&millisecond, NULL);
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
