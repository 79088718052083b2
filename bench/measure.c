/* Measures what tfix costs, beside the least that any ptrace-based tool has to do.
 *
 * measure pause TFIX VICTIM PACKAGE THREADS ROUNDS   pauses and wall times on a live victim, as table rows
 * measure run LABEL ROUNDS COMMAND [ARG...]          wall and CPU time and peak memory of a command, as a table row
 */
#define _GNU_SOURCE
#include "shared.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { MAX_ROUNDS = 1000, MAX_THREADS = 4096, SETTLE_US = 3000 };

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void failed(const char *what)
{
    fprintf(stderr, "measure: %s\n", what);
    exit(1);
}

struct series {
    int n;
    double v[MAX_ROUNDS];
};

static void add(struct series *s, double v)
{
    if (s->n < MAX_ROUNDS)
        s->v[s->n++] = v;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(struct series *s)
{
    qsort(s->v, (size_t)s->n, sizeof s->v[0], ascending);
    return s->n ? s->v[s->n / 2] : 0;
}

/* One row: label, then least, median, 90 % and greatest in `unit` microseconds. */
static void row(const char *label, struct series *s, double unit)
{
    double m = median(s);
    printf("| %s | %.3f | %.3f | %.3f | %.3f |\n", label, s->v[0] / unit, m / unit, s->v[s->n * 9 / 10] / unit,
           s->v[s->n - 1] / unit);
    fflush(stdout);
}

/* Runs a command; what it prints goes to `out`. Returns the exit status. */
static int run(char *const argv[], char *out, size_t size, double *wall_us, double *cpu_us, long *maxrss_kib)
{
    int fd[2];
    if (pipe2(fd, O_CLOEXEC))
        die("pipe2");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd[1], 1);
    posix_spawn_file_actions_adddup2(&actions, fd[1], 2);
    pid_t pid;
    double begin = now_us();
    int e = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    if (e) {
        errno = e;
        die(argv[0]);
    }
    close(fd[1]);
    size_t used = 0;
    char drop[4096];
    for (;;) {
        char *to = used + 1 < size ? out + used : drop;
        ssize_t n = read(fd[0], to, used + 1 < size ? size - 1 - used : sizeof drop);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (to != drop)
            used += (size_t)n;
    }
    out[used] = 0;
    int status;
    struct rusage usage;
    while (wait4(pid, &status, 0, &usage) < 0)
        if (errno != EINTR)
            die("wait4");
    *wall_us = now_us() - begin;
    *cpu_us = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
              (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    *maxrss_kib = usage.ru_maxrss;
    close(fd[0]);
    posix_spawn_file_actions_destroy(&actions);
    return status;
}

/* The number behind `"key":` in JSON text. */
static double number(const char *json, const char *key)
{
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\"%s\":", key);
    const char *p = strstr(json, pattern);
    return p ? atof(p + strlen(pattern)) : -1;
}

static int list_threads(pid_t pid, pid_t *tids)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *d = opendir(path);
    if (!d)
        die(path);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && n < MAX_THREADS)
            tids[n++] = atoi(e->d_name);
    closedir(d);
    return n;
}

/* The bare stop: list, seize, interrupt and await all threads, write six bytes, let all go. */
static void bare_stop(pid_t pid, int mem, uint64_t at, double *stopped_us, double *wall_us)
{
    static pid_t tids[MAX_THREADS];
    static const unsigned char code[6] = {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}; /* nopw 0(%rax,%rax) */
    double begin = now_us();
    int n = list_threads(pid, tids);
    for (int i = 0; i < n; i++)
        if (ptrace(PTRACE_SEIZE, tids[i], 0, 0))
            die("PTRACE_SEIZE");
    double stop = now_us();
    for (int i = 0; i < n; i++)
        if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0))
            die("PTRACE_INTERRUPT");
    for (int i = 0; i < n; i++) {
        int status;
        if (waitpid(tids[i], &status, __WALL) < 0)
            die("waitpid");
    }
    if (pwrite(mem, code, sizeof code, (off_t)at) != sizeof code)
        die("write to /proc/PID/mem");
    for (int i = 0; i < n; i++)
        if (ptrace(PTRACE_DETACH, tids[i], 0, 0))
            die("PTRACE_DETACH");
    double end = now_us();
    *stopped_us = end - stop;
    *wall_us = end - begin;
}

static void begin_round(struct shared *s)
{
    __atomic_fetch_add(&s->round, 1, __ATOMIC_RELEASE);
    usleep(SETTLE_US);
}

static double end_round(struct shared *s)
{
    usleep(SETTLE_US);
    return (double)s->max_gap / 1e3;
}

static int pauses(char **argv)
{
    char *tfix = argv[0], *victim = argv[1], *package = argv[2];
    int threads = atoi(argv[3]), rounds = atoi(argv[4]);
    if (rounds < 1 || rounds > MAX_ROUNDS || threads < 0 || threads >= MAX_THREADS)
        failed("THREADS or ROUNDS out of range");
    int fd = memfd_create("bench", 0);
    if (fd < 0 || ftruncate(fd, sizeof(struct shared)))
        die("memfd_create");
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED)
        die("mmap");
    char fd_text[16], threads_text[16], pid_text[16];
    snprintf(fd_text, sizeof fd_text, "%d", fd);
    snprintf(threads_text, sizeof threads_text, "%d", threads);
    char *const start[] = {victim, fd_text, threads_text, NULL};
    pid_t pid;
    int e = posix_spawn(&pid, victim, NULL, NULL, start, environ);
    if (e) {
        errno = e;
        die(victim);
    }
    for (int i = 0; s->ready < (uint64_t)threads + 1; i++) {
        if (i > 5000)
            failed("the victim does not start");
        usleep(2000);
    }
    usleep(20000);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDWR);
    if (mem < 0)
        die(path);

    snprintf(pid_text, sizeof pid_text, "%d", pid);
    char *const fix[] = {tfix, "fix", "--json", pid_text, package, NULL};
    char *const revert[] = {tfix, "revert", "--json", pid_text, NULL};
    static struct series idle, bare, bare_own, bare_wall, gap[2], own[2], wall[2], cpu[2];
    double attempts[2] = {0, 0}, parked = 0;
    long rss[2] = {0, 0};
    static char out[1 << 16];
    for (int i = 0; i < rounds; i++) {
        double stopped, us;
        begin_round(s);
        add(&idle, end_round(s));
        begin_round(s);
        bare_stop(pid, mem, s->scratch, &stopped, &us);
        add(&bare, end_round(s));
        add(&bare_own, stopped);
        add(&bare_wall, us);
        for (int verb = 0; verb < 2; verb++) {
            long kib;
            double cpu_us;
            begin_round(s);
            int status = run(verb ? revert : fix, out, sizeof out, &us, &cpu_us, &kib);
            add(&gap[verb], end_round(s));
            if (status != 0) {
                fprintf(stderr, "%s\n", out);
                failed(verb ? "tfix revert failed" : "tfix fix failed");
            }
            for (int n = 0; s->answer != (verb ? 1 : 2) && n < 1000; n++)
                usleep(1000); /* on a busy machine the thread may not have run yet */
            if (s->answer != (verb ? 1 : 2))
                failed("the victim does not behave as it should");
            add(&own[verb], number(out, "pause_us"));
            add(&wall[verb], us);
            add(&cpu[verb], cpu_us);
            attempts[verb] += number(out, "attempts");
            parked += strstr(out, "\"parked\":true") != NULL;
            if (kib > rss[verb])
                rss[verb] = kib;
        }
    }
    double ratio = median(&bare);
    printf("\n%d thread(s), %d rounds, milliseconds:\n\n", threads + 1, rounds);
    printf("| what | least | median | 90 %% | greatest |\n|---|---|---|---|---|\n");
    row("longest gap, nobody stops it", &idle, 1e3);
    row("longest gap, bare stop", &bare, 1e3);
    row("longest gap, `tfix fix`", &gap[0], 1e3);
    row("longest gap, `tfix revert`", &gap[1], 1e3);
    row("bare stop, first interrupt to last detach", &bare_own, 1e3);
    row("pause that `tfix fix` reports", &own[0], 1e3);
    row("pause that `tfix revert` reports", &own[1], 1e3);
    row("bare stop, all of it", &bare_wall, 1e3);
    row("wall time of `tfix fix`", &wall[0], 1e3);
    row("wall time of `tfix revert`", &wall[1], 1e3);
    row("CPU time of `tfix fix`", &cpu[0], 1e3);
    row("CPU time of `tfix revert`", &cpu[1], 1e3);
    printf("\nMedian gap against the bare stop: fix %.2f, revert %.2f. Stops per run: fix %.2f, revert %.2f. "
           "Peak memory: fix %ld KiB, revert %ld KiB. Images parked: %.0f of %d.\n",
           median(&gap[0]) / ratio, median(&gap[1]) / ratio, attempts[0] / rounds, attempts[1] / rounds, rss[0], rss[1],
           parked, rounds);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return 0;
}

static int command(char **argv)
{
    static struct series wall, cpu;
    int rounds = atoi(argv[1]);
    if (rounds < 1 || rounds > MAX_ROUNDS)
        failed("ROUNDS out of range");
    long most = 0;
    static char out[1 << 16];
    for (int i = 0; i < rounds; i++) {
        double us, cpu_us;
        long kib;
        if (run(argv + 2, out, sizeof out, &us, &cpu_us, &kib) != 0) {
            fprintf(stderr, "%s\n", out);
            failed("the command failed");
        }
        add(&wall, us);
        add(&cpu, cpu_us);
        if (kib > most)
            most = kib;
    }
    double m = median(&wall);
    printf("| %s | %.2f | %.2f | %.2f | %.2f | %.1f |\n", argv[0], wall.v[0] / 1e3, m / 1e3,
           wall.v[wall.n - 1] / 1e3, median(&cpu) / 1e3, (double)most / 1024);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 7 && strcmp(argv[1], "pause") == 0)
        return pauses(argv + 2);
    if (argc >= 5 && strcmp(argv[1], "run") == 0)
        return command(argv + 2);
    fprintf(stderr, "usage: measure pause TFIX VICTIM PACKAGE THREADS ROUNDS\n"
                    "       measure run LABEL ROUNDS COMMAND [ARG...]\n");
    return 2;
}
