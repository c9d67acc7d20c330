/* Makes the Nth change of a folder's files fail, as a full or failing disk would.
 *
 *     cc -shared -fPIC -O2 -o fault_shim.so fault_shim.c -ldl
 *
 * Preloaded (LD_PRELOAD), it counts the calls that change something below one folder: opening for
 * writing, write, pwrite, sendfile, copy_file_range, fsync, fdatasync, ftruncate, fallocate, rename,
 * link and mkdir. The count is in a file that several processes share. FAULT_STATE names that file,
 * which holds a struct fault; whoever starts the processes writes it, with `armed` last. FAULT_LOG
 * names a file that gets a line per change.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct fault {
    _Atomic int64_t armed;   /* 0: nothing is counted */
    _Atomic int64_t count;   /* changes so far */
    int64_t at;              /* this one fails, counted from 1; 0: none */
    int64_t lasts;           /* 0: it alone; 1: all from it on */
    int64_t number;          /* errno */
    _Atomic int64_t failed;  /* calls that were made to fail */
    char folder[1024];       /* absolute, without a slash at its end */
    char call[64];           /* the first call that failed, and on what */
    char path[1024];
};

static struct fault *state;

static struct fault *get_state(void)
{
    const char *name;
    int fd;
    if (state)
        return state;
    name = getenv("FAULT_STATE");
    if (!name)
        return NULL;
    fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    void *mapped = mmap(NULL, sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return NULL;
    state = mapped;
    return state;
}

static int is_below(const struct fault *fault, const char *path)
{
    size_t length = strlen(fault->folder);
    return length && !strncmp(path, fault->folder, length) &&
           (path[length] == '/' || path[length] == '\0');
}

static void log_change(const char *call, const char *path)
{
    char line[PATH_MAX + 128];
    const char *name = getenv("FAULT_LOG");
    int length, fd;
    if (!name)
        return;
    fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    length = snprintf(line, sizeof line, "%s of %s\n", call, path);
    syscall(SYS_write, fd, line, (size_t)length);
    close(fd);
}

/* Whether this change is to fail; errno is set then. `path` is absolute. */
static int fails(const char *call, const char *path)
{
    struct fault *fault = get_state();
    int64_t now;
    if (!fault || !fault->armed || !is_below(fault, path))
        return 0;
    now = ++fault->count;
    log_change(call, path);
    if (!fault->at || now < fault->at || (now > fault->at && !fault->lasts))
        return 0;
    if (++fault->failed == 1) {
        snprintf(fault->call, sizeof fault->call, "%s", call);
        snprintf(fault->path, sizeof fault->path, "%s", path);
    }
    errno = (int)fault->number;
    return 1;
}

static int fails_at(const char *call, int folder, const char *path)
{
    char whole[PATH_MAX + 1024], link[64];
    ssize_t length = 0;
    if (!get_state() || !state->armed)
        return 0;
    if (path[0] == '/')
        return fails(call, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    length = readlink(folder == AT_FDCWD ? "/proc/self/cwd" : link, whole, PATH_MAX);
    if (length <= 0)
        return 0;
    snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path);
    return fails(call, whole);
}

static int fails_fd(const char *call, int fd)
{
    char path[PATH_MAX + 1], link[64];
    ssize_t length;
    if (!get_state() || !state->armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX);
    if (length <= 0)
        return 0;
    path[length] = '\0';
    return fails(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FD_CALL(type, name, parameters, ...)     \
    type name parameters                         \
    {                                            \
        static __typeof__(&name) real;           \
        if (!real)                               \
            real = REAL(name);                   \
        if (fails_fd(#name, fd))                 \
            return -1;                           \
        return real(__VA_ARGS__);                \
    }

FD_CALL(ssize_t, write, (int fd, const void *bytes, size_t count), fd, bytes, count)
FD_CALL(ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
FD_CALL(ssize_t, pwrite, (int fd, const void *bytes, size_t n, off_t at), fd, bytes, n, at)
FD_CALL(ssize_t, pwrite64, (int fd, const void *bytes, size_t n, off64_t at), fd, bytes, n, at)
FD_CALL(ssize_t, sendfile, (int fd, int in, off_t *at, size_t n), fd, in, at, n)
FD_CALL(ssize_t, sendfile64, (int fd, int in, off64_t *at, size_t n), fd, in, at, n)
FD_CALL(int, fsync, (int fd), fd)
FD_CALL(int, fdatasync, (int fd), fd)
FD_CALL(int, ftruncate, (int fd, off_t length), fd, length)
FD_CALL(int, ftruncate64, (int fd, off64_t length), fd, length)
FD_CALL(int, fallocate, (int fd, int mode, off_t from, off_t n), fd, mode, from, n)

ssize_t copy_file_range(int in, off64_t *from, int fd, off64_t *to, size_t n, unsigned flags)
{
    static __typeof__(&copy_file_range) real;
    if (!real)
        real = REAL(copy_file_range);
    if (fails_fd("copy_file_range", fd))
        return -1;
    return real(in, from, fd, to, n, flags);
}

int posix_fallocate(int fd, off_t from, off_t n)
{
    static __typeof__(&posix_fallocate) real;
    if (!real)
        real = REAL(posix_fallocate);
    if (fails_fd("posix_fallocate", fd))
        return errno;
    return real(fd, from, n);
}

int rename(const char *from, const char *to)
{
    static __typeof__(&rename) real;
    if (!real)
        real = REAL(rename);
    if (fails_at("rename", AT_FDCWD, to))
        return -1;
    return real(from, to);
}

int link(const char *from, const char *to)
{
    static __typeof__(&link) real;
    if (!real)
        real = REAL(link);
    if (fails_at("link", AT_FDCWD, to))
        return -1;
    return real(from, to);
}

int renameat(int from_folder, const char *from, int folder, const char *to)
{
    static __typeof__(&renameat) real;
    if (!real)
        real = REAL(renameat);
    if (fails_at("renameat", folder, to))
        return -1;
    return real(from_folder, from, folder, to);
}

int renameat2(int from_folder, const char *from, int folder, const char *to, unsigned flags)
{
    static __typeof__(&renameat2) real;
    if (!real)
        real = REAL(renameat2);
    if (fails_at("renameat2", folder, to))
        return -1;
    return real(from_folder, from, folder, to, flags);
}

int linkat(int from_folder, const char *from, int folder, const char *to, int flags)
{
    static __typeof__(&linkat) real;
    if (!real)
        real = REAL(linkat);
    if (fails_at("linkat", folder, to))
        return -1;
    return real(from_folder, from, folder, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    static __typeof__(&mkdir) real;
    if (!real)
        real = REAL(mkdir);
    if (fails_at("mkdir", AT_FDCWD, path))
        return -1;
    return real(path, mode);
}

#define OPENS_TO_WRITE(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))

#define READ_MODE                                               \
    mode_t mode = 0;                                            \
    if (flags & (O_CREAT | __O_TMPFILE)) {                      \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode = (mode_t)va_arg(rest, int);                       \
        va_end(rest);                                           \
    }

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...)                  \
    {                                                           \
        static int (*real)(const char *, int, ...);             \
        READ_MODE                                               \
        if (!real)                                              \
            real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        if (OPENS_TO_WRITE(flags) && fails_at(#name, AT_FDCWD, path)) \
            return -1;                                          \
        return real(path, flags, mode);                         \
    }

#define OPENAT(name)                                            \
    int name(int folder, const char *path, int flags, ...)      \
    {                                                           \
        static int (*real)(int, const char *, int, ...);        \
        READ_MODE                                               \
        if (!real)                                              \
            real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        if (OPENS_TO_WRITE(flags) && fails_at(#name, folder, path)) \
            return -1;                                          \
        return real(folder, path, flags, mode);                 \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
