/* Processes that are hard to stop. Usage: odd MODE
 * churn: makes and ends threads all the time; exec: becomes itself again all the time; signals: counts real-time
 * signals, with the sum of their values; leaderless: the main thread has ended; seccomp: has a filter that kills on mmap;
 * strict: seccomp strict mode; vfork: waits for a child that was made by vfork. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile uint64_t count, sum;

static void ready(void)
{
    printf("%p %p\n", (void *)&count, (void *)&sum);
    fflush(stdout);
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
    count++;
    sum += info->si_value.sival_int;
}

static void *brief(void *unused)
{
    count++;
    return unused;
}

static void *rest(void *unused)
{
    for (;;)
        count++;
    return unused;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "churn")) {
        ready();
        for (;;) {
            pthread_t t[8];
            for (int i = 0; i < 8; i++)
                pthread_create(&t[i], 0, brief, 0);
            for (int i = 0; i < 8; i++)
                pthread_join(t[i], 0);
        }
    }
    if (!strcmp(mode, "exec")) {
        if (argc == 2)
            ready();
        execl("/proc/self/exe", argv[0], "exec", "again", (char *)0);
    }
    if (!strcmp(mode, "signals")) {
        struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
        sigaction(SIGRTMIN + 1, &sa, 0);
        ready();
        for (volatile unsigned n = 0;; n++)
            ;
    }
    if (!strcmp(mode, "leaderless")) {
        pthread_t t;
        pthread_create(&t, 0, rest, 0);
        ready();
        pthread_exit(0);
    }
    if (!strcmp(mode, "seccomp")) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog prog = {sizeof code / sizeof *code, code};
        ready();
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
            return 1;
        rest(0);
    }
    if (!strcmp(mode, "strict")) {
        ready();
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        rest(0);
    }
    if (!strcmp(mode, "vfork")) {
        int stop[2];
        (void)!pipe(stop);
        ready();
        if (vfork() == 0) {
            char c;
            close(stop[1]);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (read(0, &c, 1) > 0 && c != '\n')
                ;
            _exit(0);
        }
        rest(0);
    }
    return 1;
}
