/* memtun's control socket, as far as the benchmark needs it: JSON lines without a JSON parser. */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client.h"

static int connection = -1;
static char received[1 << 16];
static size_t received_length;

static void send_all(const char *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(connection, data, length, MSG_NOSIGNAL);
        if (sent < 0)
            err(1, "sending a call");
        data += sent;
        length -= (size_t)sent;
    }
}

/* Receives one line into `line`; the descriptor that came with it, or -1. */
static int receive_line(char *line, size_t room) {
    int descriptor = -1;
    char *end;
    while (!(end = memchr(received, '\n', received_length))) {
        struct iovec piece = {received + received_length, sizeof received - received_length};
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int))];
        } extra;
        struct msghdr message = {
            .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &extra, .msg_controllen = sizeof extra};
        ssize_t length = recvmsg(connection, &message, 0);
        if (length <= 0)
            err(1, "the daemon closed the control connection");
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header && header->cmsg_type == SCM_RIGHTS)
            memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
        received_length += (size_t)length;
    }
    size_t length = (size_t)(end - received);
    snprintf(line, room, "%.*s", (int)length, received);
    received_length -= length + 1;
    memmove(received, end + 1, received_length);
    return descriptor;
}

static int receive_result(void) {
    char line[512];
    int descriptor = receive_line(line, sizeof line);
    if (!strstr(line, "\"result\""))
        errx(1, "memtun says %s", line);
    return descriptor;
}

void control_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        errx(2, "the path of the control socket is too long: %s", path);
    strcpy(address.sun_path, path);
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address))
        err(1, "connecting to %s", path);
    char greeting[512];
    receive_line(greeting, sizeof greeting);
    if (!strstr(greeting, "\"protocol\":1}") && !strstr(greeting, "\"protocol\":1,"))
        errx(1, "not a daemon of protocol 1: %s", greeting);
}

/* Injects datagrams by calls, `window` of them in flight. */
void control_inject(const char *tunnel, int count, int window) {
    static char line[2 * MAX_DATAGRAM + 256];
    int head = sprintf(line, "{\"id\":1,\"method\":\"inject\",\"params\":{\"tunnel\":\"%s\",\"datagram\":\"", tunnel);
    char *at = line + head;
    for (size_t i = 0; i < setting.size; i++)
        at += sprintf(at, "%02x", (unsigned char)datagram[i]);
    at += sprintf(at, "\"}}\n");
    int answered = 0;
    for (int sent = 0; sent < count; sent++) {
        send_all(line, (size_t)(at - line));
        if (sent + 1 - answered >= window) {
            receive_result();
            answered++;
        }
    }
    for (; answered < count; answered++)
        receive_result();
}

int control_attach(const char *tunnel) {
    char line[256];
    int length = sprintf(line, "{\"id\":1,\"method\":\"attach\",\"params\":{\"tunnel\":\"%s\"}}\n", tunnel);
    send_all(line, (size_t)length);
    int descriptor = receive_result();
    if (descriptor < 0)
        errx(1, "memtun sent no descriptor");
    return descriptor;
}

/* Lets what was written to the tunnel go: the daemon keeps it otherwise. */
void control_discard(const char *tunnel) { close(control_attach(tunnel)); }
