/* Runs a program and counts the system calls of all its threads.
 *
 *     count_syscalls FILE PROGRAM [ARGUMENT...]
 *
 * On SIGUSR1 the count so far is written to FILE as one decimal line. SIGTERM
 * is passed on; ends with the program, and with its exit code. Linux only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t asked, stopping;

static void on_signal(int number)
{
    if (number == SIGUSR1)
        asked = 1;
    else
        stopping = 1;
}

static void answer(const char *path, unsigned long stops)
{
    char fresh[4096];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    FILE *file = fopen(fresh, "w");
    if (file) {
        /* Each call stops its thread twice, on its way in and out. */
        fprintf(file, "%lu\n", stops / 2);
        fclose(file);
        rename(fresh, path);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: count_syscalls FILE PROGRAM [ARGUMENT...]\n");
        return 64;
    }
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);

    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        execv(argv[2], argv + 2);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 71;
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options) || ptrace(PTRACE_SYSCALL, child, 0, 0)) {
        perror("count_syscalls: ptrace");
        kill(child, SIGKILL);
        return 71;
    }

    unsigned long stops = 0;
    for (;;) {
        if (stopping) {
            stopping = 0;
            kill(child, SIGTERM);
        }
        if (asked) {
            asked = 0;
            answer(argv[1], stops);
        }
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0) {
            if (errno == EINTR)
                continue;
            return 71;
        }
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread == child)
                return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int number = WSTOPSIG(status);
        if (number == (SIGTRAP | 0x80)) {
            stops++;
            number = 0;
        } else if (number == SIGTRAP || number == SIGSTOP) {
            number = 0; /* a new thread, or the start of one */
        }
        ptrace(PTRACE_SYSCALL, thread, 0, (long)number);
    }
}
