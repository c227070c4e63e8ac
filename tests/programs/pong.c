/* A host that answers ping, for any tun driver: opens /dev/net/tun (or the path given), makes the interface given (tun0 if none is), and
 * sends each echo request back as a reply. It ends after as many replies as asked for, or when it is killed.
 *
 *     pong [INTERFACE [REPLIES [DEVICE]]]
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint16_t checksum(const unsigned char *data, size_t length)
{
	uint32_t sum = 0;

	for (size_t i = 0; i + 1 < length; i += 2)
		sum += (uint32_t)data[i] << 8 | data[i + 1];
	if (length % 2)
		sum += (uint32_t)data[length - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* Turns an echo request into its reply; 0 if it is none. */
static int answer(unsigned char *packet, size_t length)
{
	size_t header = (packet[0] & 0xf) * 4u;
	unsigned char *icmp = packet + header;
	unsigned char address[4];
	uint16_t sum;

	if (length < header + 8 || packet[0] >> 4 != 4 || packet[9] != 1 || icmp[0] != 8)
		return 0;
	memcpy(address, packet + 12, 4);
	memcpy(packet + 12, packet + 16, 4);
	memcpy(packet + 16, address, 4);
	icmp[0] = 0;
	icmp[2] = icmp[3] = 0;
	sum = checksum(icmp, length - header);
	icmp[2] = (unsigned char)(sum >> 8);
	icmp[3] = (unsigned char)sum;
	return 1;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "tun0";
	const char *device = argc > 3 ? argv[3] : "/dev/net/tun";
	long replies = argc > 2 ? atol(argv[2]) : 0;
	unsigned char packet[65536];
	struct ifreq request;
	int fd;

	fd = open(device, O_RDWR);
	if (fd < 0) {
		fprintf(stderr, "%s: %s\n", device, strerror(errno));
		return 1;
	}
	memset(&request, 0, sizeof(request));
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	request.ifr_flags = IFF_TUN | IFF_NO_PI;
	if (ioctl(fd, TUNSETIFF, &request) < 0) {
		fprintf(stderr, "TUNSETIFF %s: %s\n", name, strerror(errno));
		return 1;
	}
	for (long sent = 0; replies == 0 || sent < replies;) {
		ssize_t length = read(fd, packet, sizeof(packet));

		if (length < 0) {
			fprintf(stderr, "read: %s\n", strerror(errno));
			return 1;
		}
		if (length < 20 || !answer(packet, (size_t)length))
			continue;
		if (write(fd, packet, (size_t)length) != length) {
			fprintf(stderr, "write: %s\n", strerror(errno));
			return 1;
		}
		sent++;
	}
	return 0;
}
