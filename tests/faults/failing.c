/* Lets one call that changes the file system fail, from whatever library it comes.

Preloaded (LD_PRELOAD) into a process. What is counted: every call that makes, writes, flushes or renames a file
below one folder. `fault_arm` says which of them fails, and with which errno; `fault_count` tells how many there
were. Removing is never refused: a full disk allows it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], part[256], failed[PATH_MAX + 64];
static long count, fail_at, fails;
static int fail_with, stays, kills;

/* The `at`-th call below `root` (from 1; 0: none) fails with `error`, or kills the process if that is 0. Only
calls count whose path has `of` in it. */
void fault_arm(const char *root, const char *of, long at, int error, int for_good) {
    snprintf(folder, sizeof folder, "%s", root);
    snprintf(part, sizeof part, "%s", of);
    count = fails = 0;
    fail_at = at;
    fail_with = error;
    stays = for_good;
    kills = error == 0;
    failed[0] = 0;
}

long fault_count(void) { return count; }
const char *fault_failed(void) { return failed; }

static int refused(const char *call, const char *path) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
    if (!strstr(path + length, part)) return 0;
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (!fail_at || now < fail_at) return 0;
    /* Another name needs no room: a disk that stays full gives it. */
    if (now > fail_at && (!stays || !strcmp(call, "rename"))) return 0;
    if (!fails++) snprintf(failed, sizeof failed, "%s %s", call, path);
    if (kills) kill(getpid(), SIGKILL);
    errno = fail_with;
    return 1;
}

static int refused_at(const char *call, int at, const char *path) {
    char full[2 * PATH_MAX];
    if (path[0] == '/') return refused(call, path);
    if (at == AT_FDCWD) {
        if (!getcwd(full, PATH_MAX)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t size = readlink(link, full, PATH_MAX - 1);
        if (size < 0) return 0;
        full[size] = 0;
    }
    size_t used = strlen(full);
    snprintf(full + used, sizeof full - used, "/%s", path);
    return refused(call, full);
}

static int refused_file(const char *call, int file) {
    char link[64], path[PATH_MAX];
    if (file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(call, path);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *from, size_t size) {
    return refused_file("write", file) ? -1 : REAL(write)(file, from, size);
}
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    return refused_file("write", file) ? -1 : REAL(pwrite64)(file, from, size, at);
}
ssize_t writev(int file, const struct iovec *parts, int number) {
    return refused_file("write", file) ? -1 : REAL(writev)(file, parts, number);
}
int ftruncate64(int file, off64_t size) {
    return refused_file("truncate", file) ? -1 : REAL(ftruncate64)(file, size);
}
int fsync(int file) { return refused_file("fsync", file) ? -1 : REAL(fsync)(file); }
int mkdir(const char *path, mode_t mode) {
    if (!access(path, F_OK)) return REAL(mkdir)(path, mode); /* says that it is there already */
    return refused_at("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
int rename(const char *from, const char *to) {
    return refused_at("rename", AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return refused_at("rename", to_at, to) ? -1 : REAL(renameat)(from_at, from, to_at, to);
}
int link(const char *from, const char *to) {
    return refused_at("link", AT_FDCWD, to) ? -1 : REAL(link)(from, to);
}

/* Only what may make a file counts: opening one to read needs no room. */
static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
}
#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        va_list more;                                                                             \
        va_start(more, flags);                                                                    \
        mode_t mode = mode_of(flags, more);                                                       \
        va_end(more);                                                                             \
        if (flags & O_CREAT && refused_at("create", AT_FDCWD, path)) return -1;                   \
        return REAL(name)(path, flags, mode);                                                     \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                              \
    int name(int at, const char *path, int flags, ...) {                                          \
        va_list more;                                                                             \
        va_start(more, flags);                                                                    \
        mode_t mode = mode_of(flags, more);                                                       \
        va_end(more);                                                                             \
        if (flags & O_CREAT && refused_at("create", at, path)) return -1;                         \
        return REAL(name)(at, path, flags, mode);                                                 \
    }
OPENAT(openat)
OPENAT(openat64)

/* stdio writes past `write`: refuse the file when it is opened to be written. */
FILE *fopen(const char *path, const char *mode) {
    return mode[0] != 'r' && refused_at("create", AT_FDCWD, path) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    return mode[0] != 'r' && refused_at("create", AT_FDCWD, path) ? NULL : REAL(fopen64)(path, mode);
}
