/* The files under test: how each kind of peer is opened, filled, drained and reached from the far side. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "../park.h"
#include "client.h"

char datagram[MAX_DATAGRAM + 1];

/* ---- the datagram: an ICMP echo request, which the kernel's own tun answers */

static uint16_t checksum(const char *data, size_t length) {
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += (uint32_t)((unsigned char)data[i] << 8 | (unsigned char)data[i + 1]);
    if (length & 1)
        sum += (uint32_t)((unsigned char)data[length - 1] << 8);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void put16(size_t at, unsigned value) {
    datagram[at] = (char)(value >> 8);
    datagram[at + 1] = (char)value;
}

void build_datagram(void) {
    static const char header[20] = {0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1};
    for (size_t i = 0; i < sizeof datagram; i++)
        datagram[i] = (char)i;
    memcpy(datagram, header, sizeof header);
    put16(2, (unsigned)setting.size);
    put16(10, checksum(datagram, sizeof header));
    memset(datagram + 20, 0, 8);
    datagram[20] = 8;
    put16(22, checksum(datagram + 20, setting.size - 20));
}

/* ---- opening */

static int control_socket(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        err(1, "socket");
    return fd;
}

static void enter_network_namespace(void) {
    static bool entered;
    if (entered)
        return;
    entered = true;
    if (unshare(CLONE_NEWNET))
        err(1, "making a network namespace");
    /* Else the kernel's own solicitations queue up among the datagrams. */
    int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY);
    if (fd >= 0 && write(fd, "1", 1) == 1)
        close(fd);
}

static void set_address(int fd, struct ifreq *request, unsigned long command, const char *address) {
    struct sockaddr_in in = {.sin_family = AF_INET};
    inet_pton(AF_INET, address, &in.sin_addr);
    memcpy(&request->ifr_addr, &in, sizeof in);
    if (ioctl(fd, command, request))
        err(1, "giving %s the address %s", request->ifr_name, address);
}

/* Gives the kernel's interface the address that the datagram goes to. */
static void bring_up(const char *name) {
    int fd = control_socket();
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    request.ifr_mtu = MAX_DATAGRAM;
    if (setting.size > 1500 && ioctl(fd, SIOCSIFMTU, &request))
        err(1, "raising the MTU of %s", name);
    set_address(fd, &request, SIOCSIFADDR, "10.9.0.1");
    set_address(fd, &request, SIOCSIFNETMASK, "255.255.255.0");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request))
        err(1, "bringing up %s", name);
    close(fd);
}

struct file open_file(void) {
    static int opened;
    struct file file = {.fd = -1};
    if (setting.kernel)
        enter_network_namespace();
    const char *path = setting.kernel ? "/dev/net/tun" : setting.path;
    file.fd = open(path, O_RDWR | O_CLOEXEC);
    if (file.fd < 0)
        err(1, "opening %s", path);
    if (setting.kernel || setting.control) {
        /* A name of its own: of a tunnel of the same name, the last client's datagrams may still be around. */
        struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
        snprintf(request.ifr_name, IFNAMSIZ, "b%dn%d", getpid() % 1000000, opened++ % 100000);
        if (ioctl(file.fd, TUNSETIFF, &request))
            err(1, "TUNSETIFF");
        memcpy(file.name, request.ifr_name, sizeof file.name);
    }
    if (setting.kernel)
        bring_up(file.name);
    return file;
}

void make_waiting(const struct file *file) {
    if (!setting.kernel && !setting.control && ioctl(file->fd, BENCH_PARK, 0))
        err(1, "BENCH_PARK");
}

/* ---- filling and draining */

void fill(const struct file *file, int count) {
    if (setting.control)
        control_inject(file->name, count, 64);
    else if (setting.kernel)
        for (int i = 0; i < count; i++)
            if (write(file->fd, datagram, setting.size) != (ssize_t)setting.size)
                err(1, "filling the queue");
}

/* Only the kernel answers writes by itself, so only its queue can hold what was not asked for. */
void drain(const struct file *file) {
    static char sink[MAX_DATAGRAM + 1];
    struct pollfd wait = {.fd = file->fd, .events = POLLIN};
    while (setting.kernel && poll(&wait, 1, 0) == 1)
        if (read(file->fd, sink, sizeof sink) < 0)
            err(1, "draining the queue");
}

/* ---- the far side */

int open_far_end(const struct file *file) {
    if (setting.control)
        return control_attach(file->name);
    if (setting.kernel) {
        /* A bad checksum, so that the kernel itself neither answers nor forwards what comes back. */
        datagram[10] ^= 1;
        int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETHERTYPE_IP));
        struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                      .sll_protocol = htons(ETHERTYPE_IP),
                                      .sll_ifindex = (int)if_nametoindex(file->name)};
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address))
            err(1, "opening a packet socket on %s", file->name);
        drain(file);
        return fd;
    }
    if (!setting.inject)
        errx(2, "this peer takes no datagrams for blocked readers");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", setting.inject);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        err(1, "connecting to %s", setting.inject);
    return fd;
}

/* ---- blocked readers */

struct reader {
    struct file file;
    pid_t tid;
};

static void *block(void *argument) {
    struct reader *reader = argument;
    char buffer[2048];
    __atomic_store_n(&reader->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    ssize_t length = read(reader->file.fd, buffer, sizeof buffer);
    errx(1, "a blocked read gave %zd", length);
}

/* Whether a thread is inside read(2); the kernel shows system calls only of threads that sleep. */
static bool is_in_read(pid_t tid) {
    char path[64], line[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        err(1, "opening %s", path);
    ssize_t length = read(fd, line, sizeof line - 1);
    close(fd);
    return length > 2 && line[0] == '0' && line[1] == ' ';
}

void start_blocked_readers(int count) {
    struct reader *readers = calloc((size_t)count + 1, sizeof *readers);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    for (int i = 0; i < count; i++) {
        readers[i].file = open_file();
        make_waiting(&readers[i].file);
        pthread_t thread;
        errno = pthread_create(&thread, &attributes, block, &readers[i]);
        if (errno)
            err(1, "starting reader %d", i);
    }
    for (int i = 0; i < count; i++) {
        pid_t tid;
        while (!(tid = __atomic_load_n(&readers[i].tid, __ATOMIC_ACQUIRE)) || !is_in_read(tid))
            usleep(100);
    }
    /* Requests are taken in order: when this one is answered, so much as all before it have been seen. */
    struct pollfd last = {.fd = count ? readers[count - 1].file.fd : -1, .events = POLLOUT};
    poll(&last, 1, 0);
}
