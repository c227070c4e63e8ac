/* Reads from a tun and says how each read ended, a line each: "attached NAME", "read COUNT", "read -1 ERRNAME",
 * "signal". It ends at the first error other than EINTR.
 *
 *     reader DEVICE INTERFACE [sa_restart]
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void on_signal(int number)
{
	(void)number;
	(void)!write(STDOUT_FILENO, "signal\n", 7);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	char buffer[65536];
	int fd;

	if (argc < 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	action.sa_flags = argc > 3 && strcmp(argv[3], "sa_restart") == 0 ? SA_RESTART : 0;
	sigaction(SIGUSR1, &action, NULL);
	fd = open(argv[1], O_RDWR);
	strncpy(request.ifr_name, argv[2], IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
		printf("failed %s\n", strerrorname_np(errno));
		return 1;
	}
	printf("attached %s\n", request.ifr_name);
	for (;;) {
		ssize_t length = read(fd, buffer, sizeof(buffer));

		if (length >= 0)
			printf("read %zd\n", length);
		else
			printf("read -1 %s\n", strerrorname_np(errno));
		if (length < 0 && errno != EINTR)
			return 1;
	}
}
