/* A socket pair with a process behind it, as the cost of handing a datagram over and waiting for the answer without a
 * device: a write sends the datagram and waits for 16 bytes (a reply header), a read sends 40 and waits for the
 * datagram. */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

static int ours;
static char buffer[MAX_DATAGRAM + 1];

static void serve(int fd) {
    for (;;) {
        ssize_t length = recv(fd, buffer, sizeof buffer, 0);
        if (length <= 0)
            _exit(0);
        if (send(fd, buffer, length == 40 ? setting.size : 16, MSG_NOSIGNAL) < 0)
            _exit(0);
    }
}

void pair_start(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
        err(1, "socketpair");
    ours = ends[0];
    switch (fork()) {
    case -1: err(1, "fork");
    case 0:
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ours);
        pin(setting.pair_cpu);
        serve(ends[1]);
    }
    close(ends[1]);
}

static void call(size_t request, size_t answer) {
    if (send(ours, datagram, request, MSG_NOSIGNAL) != (ssize_t)request)
        err(1, "send");
    ssize_t length = recv(ours, buffer, sizeof buffer, 0);
    if (length != (ssize_t)answer)
        err(1, "recv gave %zd", length);
}

void pair_write(void) { call(setting.size, 16); }
void pair_read(void) { call(40, setting.size); }
