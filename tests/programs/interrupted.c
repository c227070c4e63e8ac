/* Attaches to tunnels while signals come every millisecond, and says how each attach ended, a line each: "attached NAME" or
 * "failed ERRNAME". Without a third argument no signals come.
 *
 *     interrupted DEVICE COUNT [signals]
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

static void on_signal(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	int count = argc > 2 ? atoi(argv[2]) : 0;

	sigaction(SIGALRM, &action, NULL);
	for (int i = 0; i < count; i++) {
		struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
		int fd = open(argv[1], O_RDWR), attached;

		if (argc > 3)
			setitimer(ITIMER_REAL, &often, NULL);
		attached = ioctl(fd, TUNSETIFF, &request);
		/* Before anything else can fail by a signal. */
		setitimer(ITIMER_REAL, &never, NULL);
		if (attached < 0)
			printf("failed %s\n", strerrorname_np(errno));
		else
			printf("attached %s\n", request.ifr_name);
		close(fd);
	}
	return 0;
}
