/* Forwards datagrams between two tunnels, the second of which is in another network namespace. They have vnet headers, and
 * this program takes what the kernel leaves for the device to do: so datagrams that it leaves whole stay so.
 *
 *     forward tun|tap NAME NAMESPACE NAME
 */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static int attach(const char *mode, const char *name)
{
	int fd = check(open("/dev/net/tun", O_RDWR | O_NONBLOCK), "/dev/net/tun");
	struct ifreq request = { .ifr_flags = IFF_NO_PI | IFF_VNET_HDR };

	request.ifr_flags |= strcmp(mode, "tap") ? IFF_TUN : IFF_TAP;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	check(ioctl(fd, TUNSETIFF, &request), "TUNSETIFF");
	check(ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6), "TUNSETOFFLOAD");
	return fd;
}

int main(int argc, char **argv)
{
	static char datagram[10 + 14 + 65535];
	struct pollfd ends[2];

	if (argc != 5) {
		fprintf(stderr, "usage: %s tun|tap NAME NAMESPACE NAME\n", argv[0]);
		return 2;
	}
	ends[0].fd = attach(argv[1], argv[2]);
	check(setns(check(open(argv[3], O_RDONLY), argv[3]), CLONE_NEWNET), "setns");
	ends[1].fd = attach(argv[1], argv[4]);
	ends[0].events = ends[1].events = POLLIN;
	puts("attached");
	fflush(stdout);
	for (;;) {
		check(poll(ends, 2, -1), "poll");
		for (int from = 0; from < 2; from++) {
			ssize_t length = read(ends[from].fd, datagram, sizeof(datagram));

			/* As a cable: what the other end does not take is lost. */
			if (length > 0 && write(ends[!from].fd, datagram, length) < 0)
				continue;
		}
	}
}
