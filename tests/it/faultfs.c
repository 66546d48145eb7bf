/* A disk that fails on demand. Preloaded into the real binary, it makes writes fail with ENOSPC while the file
 * $FAULTFS_CONTROL.full exists, with EIO while .write exists, and syncs fail with EIO while .sync exists; while .slow
 * exists, each write to a write-ahead log takes half a millisecond, so that a kill meets commits that are not
 * finished; and $FAULTFS_CONTROL.trace, while it exists, gets a line for each write ("W") and each sync ("S") of a
 * write-ahead log. Only files whose path contains $FAULTFS_FOLDER are concerned; all else goes to the system as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int concerns(int fd, const char *file) {
    const char *folder = getenv("FAULTFS_FOLDER");
    char link[64], path[4096];
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, folder) != NULL && strstr(path, file) != NULL;
}

static int is_on(const char *fault) {
    const char *control = getenv("FAULTFS_CONTROL");
    char path[4096];
    if (!control) return 0;
    snprintf(path, sizeof path, "%s.%s", control, fault);
    return access(path, F_OK) == 0;
}

static void trace(int fd, const char *what) {
    const char *control = getenv("FAULTFS_CONTROL");
    char path[4096];
    if (!is_on("trace") || !concerns(fd, "-wal")) return;
    snprintf(path, sizeof path, "%s.trace", control);
    int file = open(path, O_WRONLY | O_APPEND);
    if (file < 0) return;
    dprintf(file, "%s\n", what);
    close(file);
}

static int write_fails(int fd) {
    int saved = errno;
    int fault = !concerns(fd, "") ? 0 : is_on("full") ? ENOSPC : is_on("write") ? EIO : 0;
    if (!fault && is_on("slow") && concerns(fd, "-wal")) usleep(500);
    if (!fault) trace(fd, "W");
    errno = fault ? fault : saved;
    return fault;
}

static int sync_fails(int fd) {
    int saved = errno;
    int fault = concerns(fd, "") && is_on("sync") ? EIO : 0;
    if (!fault) trace(fd, "S");
    errno = fault ? fault : saved;
    return fault;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *from, size_t length) {
    REAL(write);
    return write_fails(fd) ? -1 : real(fd, from, length);
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t at) {
    REAL(pwrite);
    return write_fails(fd) ? -1 : real(fd, from, length, at);
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
    REAL(pwrite64);
    return write_fails(fd) ? -1 : real(fd, from, length, at);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) {
    REAL(pwritev);
    return write_fails(fd) ? -1 : real(fd, from, count, at);
}
int fsync(int fd) {
    REAL(fsync);
    return sync_fails(fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return sync_fails(fd) ? -1 : real(fd);
}
