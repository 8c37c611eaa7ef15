/* Tries one thing that a sandbox must not allow, and prints "ok" or the name of the error. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static int report(long result) {
    if (result >= 0)
        puts("ok");
    else
        puts(strerrorname_np(errno));
    return 0;
}

/* An ioctl on the controlling terminal of a fresh session. */
static int on_terminal(unsigned long request, const char *argument) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
        return report(-1);
    char name[64];
    ptsname_r(master, name, sizeof name);
    pid_t child = fork();
    if (child == 0) {
        setsid();
        int terminal = open(name, O_RDWR);
        ioctl(terminal, TIOCSCTTY, 0);
        report(syscall(SYS_ioctl, terminal, request, argument));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    return 0;
}

static int to(const char *address, const char *port, int type) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, address, &where.sin_addr);
    int fd = socket(AF_INET, type, 0);
    struct timeval limit = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&where, sizeof where) < 0)
        return report(-1);
    return report(send(fd, "x", 1, MSG_NOSIGNAL));
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (is(what, "unshare")) return report(unshare(CLONE_NEWUSER));
    if (is(what, "clone")) {
        long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
        if (pid == 0) _exit(0);
        return report(pid);
    }
    if (is(what, "clone3")) return report(syscall(SYS_clone3, NULL, 0));
    if (is(what, "setns")) return report(syscall(SYS_setns, 0, 0));
    if (is(what, "mount")) return report(mount("x", "/tmp", "tmpfs", 0, ""));
    if (is(what, "umount2")) return report(umount2("/tmp", MNT_DETACH));
    if (is(what, "pivot_root")) return report(syscall(SYS_pivot_root, ".", "."));
    if (is(what, "chroot")) return report(chroot("/tmp"));
    if (is(what, "open_tree")) return report(syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    if (is(what, "move_mount")) return report(syscall(SYS_move_mount, 0, "", 0, "", 0));
    if (is(what, "fsopen")) return report(syscall(SYS_fsopen, "tmpfs", 0));
    if (is(what, "fsconfig")) return report(syscall(SYS_fsconfig, 0, 0, 0, 0, 0));
    if (is(what, "fsmount")) return report(syscall(SYS_fsmount, 0, 0, 0));
    if (is(what, "fspick")) return report(syscall(SYS_fspick, AT_FDCWD, "/", 0));
    if (is(what, "mount_setattr")) return report(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, NULL, 0));
#ifdef __x86_64__
    if (is(what, "int80")) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(310L), "b"((long)CLONE_NEWUSER) : "memory");
        errno = -result;
        return report(result < 0 ? -1 : 0);
    }
    if (is(what, "x32")) return report(syscall(0x40000000 + SYS_getpid));
#endif
    if (is(what, "future")) return report(syscall(467, AT_FDCWD, "/", 0, NULL, 0));
    if (is(what, "ptrace")) return report(ptrace(PTRACE_ATTACH, 1, 0, 0));
    if (is(what, "vm_readv")) {
        char byte;
        struct iovec here = {&byte, 1}, there = {main, 1};
        return report(process_vm_readv(1, &here, 1, &there, 1, 0));
    }
    if (is(what, "mem")) return report(open("/proc/1/mem", O_RDWR));
    if (is(what, "environ")) return report(open("/proc/1/environ", O_RDONLY));
    if (is(what, "fds")) return report(open("/proc/1/fd", O_RDONLY | O_DIRECTORY));
    if (is(what, "root")) return report(open("/proc/1/root/", O_RDONLY));
    if (is(what, "getfd")) {
        long fd = syscall(SYS_pidfd_open, 1, 0);
        if (fd < 0) return report(fd);
        return report(syscall(SYS_pidfd_getfd, fd, 3, 0));
    }
    if (is(what, "tiocsti")) return on_terminal(0x5412, "x");
    if (is(what, "tiocsti_wide")) return on_terminal(0x100005412UL, "x");
    if (is(what, "tioclinux")) return on_terminal(0x541c, "\x03");
    if (is(what, "keyctl")) return report(syscall(SYS_keyctl, 0, -3, 1));
    if (is(what, "add_key")) return report(syscall(SYS_add_key, "user", "x", "y", 1, -3));
    if (is(what, "request_key")) return report(syscall(SYS_request_key, "user", "x", 0, -3));
    if (is(what, "bpf")) return report(syscall(SYS_bpf, 0, NULL, 0));
    if (is(what, "perf_event_open")) return report(syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    if (is(what, "userfaultfd")) return report(syscall(SYS_userfaultfd, 1));
    if (is(what, "io_uring")) return report(syscall(SYS_io_uring_setup, 1, NULL));
    if (is(what, "memfd")) return report(syscall(SYS_memfd_create, "x", 0));
    if (is(what, "packet")) return report(socket(AF_PACKET, SOCK_DGRAM, 0));
    if (is(what, "raw")) return report(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    if (is(what, "raw6")) return report(socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, 58));
    if (is(what, "vsock")) return report(socket(AF_VSOCK, SOCK_STREAM, 0));
    if (is(what, "alg")) return report(socket(AF_ALG, SOCK_SEQPACKET, 0));
    if (is(what, "netfilter")) return report(socket(AF_NETLINK, SOCK_RAW, 12));
    if (is(what, "route")) return report(socket(AF_NETLINK, SOCK_RAW, 0));
    if (is(what, "udp")) return to(argv[2], argv[3], SOCK_DGRAM);
    if (is(what, "tcp")) return to(argv[2], argv[3], SOCK_STREAM);
    if (is(what, "abstract")) {
        struct sockaddr_un where = {.sun_family = AF_UNIX};
        strncpy(where.sun_path + 1, argv[2], sizeof where.sun_path - 2);
        socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argv[2]);
        return report(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&where, size));
    }
    if (is(what, "mknod_block")) return report(mknod("b", S_IFBLK | 0600, makedev(8, 0)));
    if (is(what, "mknod_char")) return report(mknod("c", S_IFCHR | 0600, makedev(1, 1)));
    if (is(what, "sethostname")) return report(sethostname("x", 1));
    if (is(what, "use")) {
        size_t size = (size_t)atoi(argv[2]) << 20, step = 1 << 20;
        for (size_t done = 0; done < size; done += step) {
            char *more = malloc(step);
            if (!more) return report(-1);
            memset(more, 1, step);
            usleep(200);
        }
        puts("ok");
        fflush(stdout);
        if (argc > 3) sleep(atoi(argv[3]));
        return 0;
    }
    puts("unknown");
    return 2;
}
