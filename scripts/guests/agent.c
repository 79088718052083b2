/* The first and only process of a test guest that comes with it: sets the guest up, then does what the test on the host
 * asks for over a virtio-serial port. It can be saved with the guest while nobody is connected.
 *
 * A message, either way: one byte of kind, three of padding, id and length (32 bits each), then that many bytes. Numbers
 * are big-endian. From the host:
 *   S  start a program: arguments, each ended by a zero byte         -> P pid | E errno
 *   I  bytes for the standard input of program `id`; none: close it
 *   K  pid and signal                                                -> D | E errno
 *   W  write a file, and make its directory: mode, path, zero byte, contents -> D | E errno
 *   U  write into a file that is there: offset (64 bits), path, zero byte, bytes -> D | E errno
 *   R  read a file: offset (64 bits), limit (32 bits), path          -> F contents | E errno
 *   L  names in a directory: path                                    -> F names, each ended by a zero byte | E errno
 *   Q  power off
 * About program `id`: O bytes of its standard output, e of its standard error, X its wait status (nothing follows). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROGRAMS = 256, CHUNK = 65536 };

static struct program {
    uint32_t id;
    pid_t pid;
    int in, out, err;
} programs[PROGRAMS];
static int port = -1;

static void die(const char *what) {
    printf("agent: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static uint32_t get32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* All of it, however long that takes. */
static void get_all(void *to, size_t len) {
    for (char *p = to; len;) {
        ssize_t n = read(port, p, len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            die("read of the port");
        /* 0: as the kernel sees it nobody is connected, and there is no more data. The news that somebody is can come later
         * than the first bytes of theirs (drivers/char/virtio_console.c: it takes another queue), and a guest ends with its
         * host, so that the rest will come. Not a moment is slept here: the guest is saved while it waits for the first
         * host, and must not be saved with its processor halted (qemu-tests/src/guest/clock.rs). */
        p += n, len -= (size_t)n;
    }
}

static void put_all(const void *from, size_t len) {
    for (const char *p = from; len;) {
        ssize_t n = write(port, p, len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return;
        p += n, len -= (size_t)n;
    }
}

static void say(char kind, uint32_t id, const void *bytes, size_t len) {
    unsigned char header[12] = {(unsigned char)kind};
    put32(header + 4, id);
    put32(header + 8, (uint32_t)len);
    put_all(header, sizeof header);
    put_all(bytes, len);
}

static void say32(char kind, uint32_t id, uint32_t value) {
    unsigned char bytes[4];
    put32(bytes, value);
    say(kind, id, bytes, sizeof bytes);
}

static void write_file(uint32_t id, const unsigned char *p, size_t len) {
    const char *path = (const char *)p + 4;
    size_t head = 4 + strnlen(path, len - 4) + 1;
    char dir[256];
    snprintf(dir, sizeof dir, "%s", path);
    if (strrchr(dir, '/') > dir) {
        *strrchr(dir, '/') = 0;
        mkdir(dir, 0755);
    }
    unlink(path); /* it may be running */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        say32('E', id, (uint32_t)errno);
        return;
    }
    for (size_t at = head; at < len;) {
        ssize_t n = write(fd, p + at, len - at);
        if (n <= 0) {
            say32('E', id, (uint32_t)errno);
            close(fd);
            return;
        }
        at += (size_t)n;
    }
    fchmod(fd, (mode_t)get32(p));
    close(fd);
    say('D', id, NULL, 0);
}

static void update_file(uint32_t id, const unsigned char *p, size_t len) {
    off64_t offset = (off64_t)((uint64_t)get32(p) << 32 | get32(p + 4));
    const char *path = (const char *)p + 8;
    size_t head = 8 + strnlen(path, len - 8) + 1;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pwrite64(fd, p + head, len - head, offset);
    if (n < 0)
        say32('E', id, (uint32_t)errno);
    else
        say('D', id, NULL, 0);
    if (fd >= 0)
        close(fd);
}

static void read_file(uint32_t id, const unsigned char *p) {
    off64_t offset = (off64_t)((uint64_t)get32(p) << 32 | get32(p + 4));
    size_t limit = get32(p + 8), got = 0;
    int fd = open64((const char *)p + 12, O_RDONLY | O_CLOEXEC);
    char *bytes = malloc(limit + 1);
    int error = fd < 0 ? errno : !bytes ? ENOMEM : 0;
    while (!error && got < limit) {
        /* Files of /proc know no positions beyond what was read, and /proc/PID/mem no other way. */
        ssize_t n = offset ? pread64(fd, bytes + got, limit - got, offset + (off64_t)got)
                           : read(fd, bytes + got, limit - got);
        if (n < 0)
            error = errno;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    if (error)
        say32('E', id, (uint32_t)error);
    else
        say('F', id, bytes, got);
    free(bytes);
    if (fd >= 0)
        close(fd);
}

static void list(uint32_t id, const char *path) {
    DIR *dir = opendir(path);
    if (!dir) {
        say32('E', id, (uint32_t)errno);
        return;
    }
    size_t len = 0, room = CHUNK;
    char *names = malloc(room);
    for (struct dirent *d; names && (d = readdir(dir));) {
        size_t n = strlen(d->d_name) + 1;
        if (len + n > room)
            names = realloc(names, room *= 2);
        memcpy(names + len, d->d_name, n);
        len += n;
    }
    say('F', id, names, len);
    free(names);
    closedir(dir);
}

static void start(uint32_t id, char *p, size_t len) {
    char *argv[64];
    size_t argc = 0;
    for (size_t at = 0; at < len && argc < 63; at += strlen(p + at) + 1)
        argv[argc++] = p + at;
    argv[argc] = NULL;
    struct program *prog = programs;
    while (prog < programs + PROGRAMS && prog->pid)
        prog++;
    int in[2], out[2], err[2], failure[2];
    if (!argc || prog == programs + PROGRAMS || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) ||
        pipe2(failure, O_CLOEXEC)) {
        say32('E', id, EAGAIN);
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        signal(SIGCHLD, SIG_DFL);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        dup2(in[0], 0), dup2(out[1], 1), dup2(err[1], 2);
        execv(argv[0], argv);
        int error = errno;
        if (write(failure[1], &error, sizeof error) < 0)
            _exit(126);
        _exit(127);
    }
    close(in[0]), close(out[1]), close(err[1]), close(failure[1]);
    int error = pid < 0 ? errno : 0;
    /* Waits until the program is there, or could not be. */
    if (!error && read(failure[0], &error, sizeof error) != sizeof error)
        error = 0;
    close(failure[0]);
    if (error) {
        close(in[1]), close(out[0]), close(err[0]);
        if (pid > 0)
            waitpid(pid, NULL, 0);
        say32('E', id, (uint32_t)error);
        return;
    }
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);
    *prog = (struct program){id, pid, in[1], out[0], err[0]};
    say32('P', id, (uint32_t)pid);
}

static void drain(struct program *prog, int *fd, char kind) {
    static char bytes[CHUNK];
    while (*fd >= 0) {
        ssize_t n = read(*fd, bytes, sizeof bytes);
        if (n > 0) {
            say(kind, prog->id, bytes, (size_t)n);
        } else if (n == 0) {
            close(*fd);
            *fd = -1;
        } else if (errno != EINTR) {
            return;
        }
    }
}

static void bury(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (struct program *prog = programs; prog < programs + PROGRAMS; prog++)
            if (prog->pid == pid) {
                drain(prog, &prog->out, 'O');
                drain(prog, &prog->err, 'e');
                say32('X', prog->id, (uint32_t)status);
                close(prog->out), close(prog->err), close(prog->in);
                prog->pid = 0;
            }
}

/* One message of the host. */
static void serve(void) {
    unsigned char header[12];
    get_all(header, sizeof header);
    uint32_t id = get32(header + 4), len = get32(header + 8);
    unsigned char *p = calloc(1, (size_t)len + 1);
    if (!p)
        die("memory for a message");
    get_all(p, len);
    switch (header[0]) {
    case 'S':
        start(id, (char *)p, len);
        break;
    case 'I':
        for (struct program *prog = programs; prog < programs + PROGRAMS; prog++)
            if (prog->pid && prog->id == id && prog->in >= 0) {
                if (!len || write(prog->in, p, len) < 0) {
                    close(prog->in);
                    prog->in = -1;
                }
            }
        break;
    case 'K':
        if (len < 8 || kill((pid_t)get32(p), (int)get32(p + 4)))
            say32('E', id, len < 8 ? EINVAL : (uint32_t)errno);
        else
            say('D', id, NULL, 0);
        break;
    case 'W':
        if (len < 6)
            say32('E', id, EINVAL);
        else
            write_file(id, p, len);
        break;
    case 'U':
        if (len < 10)
            say32('E', id, EINVAL);
        else
            update_file(id, p, len);
        break;
    case 'R':
        if (len < 13)
            say32('E', id, EINVAL);
        else
            read_file(id, p);
        break;
    case 'L':
        list(id, (char *)p);
        break;
    case 'Q':
        reboot(RB_POWER_OFF);
        break;
    default:
        say32('E', id, ENOSYS);
    }
    free(p);
}

static void on_child(int sig) { (void)sig; }

/* Modules in the order of the list, one path in each line; those that a kernel has built in are not in it. */
static void load_modules(void) {
    FILE *list = fopen("/modules/list", "re");
    char path[256];
    while (list && fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            die(path);
        close(fd);
    }
    if (list)
        fclose(list);
}

static void set_up(void) {
    static const struct {
        const char *type, *where;
    } mounts[] = {{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/dev/shm"}};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i].where, 0755);
        if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL) && errno != EBUSY)
            die(mounts[i].where);
    }
    chmod("/tmp", 01777);
    load_modules();
    /* Programs that want random numbers would wait for ever in a guest in which nothing happens. */
    struct {
        struct rand_pool_info info;
        uint32_t bytes[64];
    } pool = {{2048, 256}, {1, 2, 3}};
    int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (random < 0 || ioctl(random, RNDADDENTROPY, &pool))
        die("/dev/urandom");
    close(random);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    setenv("PATH", "/bin", 1);
    if (chdir("/tmp"))
        die("/tmp");
}

int main(void) {
    set_up();
    sigset_t child, old;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &old);
    sigaction(SIGCHLD, &(struct sigaction){.sa_handler = on_child}, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (int tries = 0; port < 0; tries++) {
        port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);
        if (port < 0 && tries == 1000)
            die("/dev/vport0p1");
        if (port < 0)
            usleep(10000);
    }
    printf("agent: ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[1 + 2 * PROGRAMS] = {{port, POLLIN, 0}};
        for (int i = 0; i < PROGRAMS; i++) {
            fds[1 + 2 * i] = (struct pollfd){programs[i].pid ? programs[i].out : -1, POLLIN, 0};
            fds[2 + 2 * i] = (struct pollfd){programs[i].pid ? programs[i].err : -1, POLLIN, 0};
        }
        ppoll(fds, 1 + 2 * PROGRAMS, NULL, &old);
        for (int i = 0; i < PROGRAMS; i++)
            if (programs[i].pid) {
                if (fds[1 + 2 * i].revents)
                    drain(&programs[i], &programs[i].out, 'O');
                if (fds[2 + 2 * i].revents)
                    drain(&programs[i], &programs[i].err, 'e');
            }
        bury();
        if (fds[0].revents & POLLIN)
            serve();
    }
}
