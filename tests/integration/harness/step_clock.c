/* Runs a program whose wall clock can be set, on its own.
 *
 *     step_clock FILE PROGRAM [ARGUMENT...]
 *
 * FILE holds, as a decimal number, how many milliseconds the wall clock of the
 * program is ahead of the truth; it is read each time that the program asks, so
 * replacing it sets the clock. The other clocks are left alone. For programs
 * without a C library, such as a nats-server, which no preloaded library
 * reaches. Becomes the program: process number, signals and end are its own.
 * Linux only.
 *
 * How: the program is traced by a process beside it, finds no vDSO, and so asks
 * the kernel; a filter stops just these calls, and the answer is changed.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/ptrace.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* <sys/ptrace.h> and <linux/ptrace.h> do not go together. */
long ptrace(int request, pid_t pid, void *address, void *data);

/* Where each thread wants its answer. Numbers of threads that run are this far
 * apart. */
#define MASK 0x3fffff
static unsigned long answers[MASK + 1];

static long peek(pid_t pid, unsigned long at)
{
    errno = 0;
    return ptrace(PTRACE_PEEKDATA, pid, (void *)at, NULL);
}

static int syscall_info(pid_t pid, struct ptrace_syscall_info *info)
{
    return ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof *info, info) > 0;
}

/* The program has just been started: its stack holds the number of arguments,
 * the arguments, the environment, and what the kernel tells it. */
static void hide_vdso(pid_t pid)
{
    struct ptrace_syscall_info info;
    unsigned long at;
    if (!syscall_info(pid, &info))
        return;
    at = info.stack_pointer;
    at += sizeof(long) * (1 + peek(pid, at) + 1);
    while (peek(pid, at) != 0)
        at += sizeof(long);
    for (at += sizeof(long); peek(pid, at) != AT_NULL; at += 2 * sizeof(long))
        if (peek(pid, at) == AT_SYSINFO_EHDR)
            ptrace(PTRACE_POKEDATA, pid, (void *)at, (void *)AT_IGNORE);
}

static void shift(pid_t pid, const char *path, unsigned long at)
{
    char text[64] = {0};
    struct timespec now;
    long long millis, nanos;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, text, sizeof text - 1) < 0)
        text[0] = 0;
    if (file >= 0)
        close(file);
    millis = strtoll(text, NULL, 10);
    now.tv_sec = peek(pid, at);
    now.tv_nsec = peek(pid, at + sizeof(long));
    nanos = now.tv_nsec + millis % 1000 * 1000000LL;
    now.tv_sec += millis / 1000 + nanos / 1000000000LL;
    nanos %= 1000000000LL;
    if (nanos < 0) {
        nanos += 1000000000LL;
        now.tv_sec -= 1;
    }
    ptrace(PTRACE_POKEDATA, pid, (void *)at, (void *)now.tv_sec);
    ptrace(PTRACE_POKEDATA, pid, (void *)(at + sizeof(long)), (void *)nanos);
}

static void trace(pid_t program, const char *path, int ready)
{
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
                   PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    int status;
    pid_t thread;
    char done = ptrace(PTRACE_SEIZE, program, NULL, (void *)options) == 0 ? '.' : 'x';
    if (write(ready, &done, 1) != 1 || done != '.')
        _exit(71);
    close(ready);
    /* Nothing of the program's stays open in here. */
    for (int file = 0; file < 3; file++)
        close(file);
    while ((thread = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
        struct ptrace_syscall_info info;
        int number, event;
        if (thread < 0 || !WIFSTOPPED(status))
            continue;
        number = WSTOPSIG(status);
        event = status >> 16;
        if (event == PTRACE_EVENT_SECCOMP) {
            /* To its end: then the answer is there. */
            answers[thread & MASK] =
                syscall_info(thread, &info) && info.op == PTRACE_SYSCALL_INFO_SECCOMP
                    ? info.seccomp.args[1]
                    : 0;
            ptrace(PTRACE_SYSCALL, thread, NULL, NULL);
        } else if (number == (SIGTRAP | 0x80)) {
            if (syscall_info(thread, &info) && info.op == PTRACE_SYSCALL_INFO_EXIT &&
                info.exit.rval == 0 && answers[thread & MASK])
                shift(thread, path, answers[thread & MASK]);
            answers[thread & MASK] = 0;
            ptrace(PTRACE_CONT, thread, NULL, NULL);
        } else if (event == PTRACE_EVENT_EXEC) {
            hide_vdso(thread);
            ptrace(PTRACE_CONT, thread, NULL, NULL);
        } else if (event == PTRACE_EVENT_STOP && number != SIGTRAP) {
            /* Stopped by a signal, until another one lets it go on. */
            ptrace(PTRACE_LISTEN, thread, NULL, NULL);
        } else {
            ptrace(PTRACE_CONT, thread, NULL, (void *)(long)(event ? 0 : number));
        }
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_REALTIME, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { sizeof code / sizeof code[0], code };
    pid_t program = getpid(), child;
    int ready[2];
    char done = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: step_clock FILE PROGRAM [ARGUMENT...]\n");
        return 64;
    }
    if (pipe2(ready, O_CLOEXEC) != 0)
        return 71;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    /* Not a child of the program: it need not wait for anybody. */
    child = fork();
    if (child == 0) {
        if (fork() == 0)
            trace(program, argv[1], ready[1]);
        _exit(0);
    }
    close(ready[1]);
    if (child < 0 || waitpid(child, NULL, 0) != child || read(ready[0], &done, 1) != 1 ||
        done != '.') {
        fprintf(stderr, "step_clock: it cannot be traced\n");
        return 71;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        perror("step_clock: no filter");
        return 71;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
