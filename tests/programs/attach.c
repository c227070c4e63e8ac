/* Attaches to a tun and says how that ended: "attached NAME" or "failed ERRNAME". Then it waits for the end of its input.
 *
 *     attach DEVICE INTERFACE FLAGS [mute] [COUNT]
 *
 * mute: the memory for the answer does not come before the end of the input, which is said before ("asking"). COUNT: so many tuns, each by a file of its own, and
 * one line for the last.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A page that can be read, and whose change waits for somebody to allow it. */
static void *mute_page(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_WP };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (fd < 0 || page == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) < 0) {
		printf("no userfaultfd\n");
		exit(3);
	}
	page[0] = 0;
	range.range.start = (unsigned long)page;
	range.range.len = 4096;
	if (ioctl(fd, UFFDIO_REGISTER, &range) < 0) {
		printf("no userfaultfd\n");
		exit(3);
	}
	return page;
}

static void make_mute(void *page, int is_mute)
{
	/* The descriptor is the first that this program has opened. */
	struct uffdio_writeprotect protect = { .range = { .start = (unsigned long)page, .len = 4096 } };

	protect.mode = is_mute ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
	if (ioctl(3, UFFDIO_WRITEPROTECT, &protect) < 0) {
		printf("no userfaultfd\n");
		exit(3);
	}
}

static void *wait_for_end_of_input(void *page)
{
	(void)!getchar();
	make_mute(page, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	struct ifreq plain = { 0 }, *request = &plain;
	int is_mute = argc > 4 && strcmp(argv[4], "mute") == 0;
	int count = argc > 4 && !is_mute ? atoi(argv[4]) : 1;
	pthread_t waiter;
	int fd;

	if (argc < 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (is_mute)
		request = mute_page();
	while (count-- > 0) {
		memset(request, 0, sizeof(*request));
		strncpy(request->ifr_name, argv[2], IFNAMSIZ - 1);
		request->ifr_flags = (short)strtoul(argv[3], NULL, 0);
		if (is_mute) {
			make_mute(request, 1);
			pthread_create(&waiter, NULL, wait_for_end_of_input, request);
			printf("asking\n");
		}
		fd = open(argv[1], O_RDWR);
		if (fd < 0 || ioctl(fd, TUNSETIFF, request) < 0) {
			printf("failed %s\n", strerrorname_np(errno));
			return 1;
		}
	}
	printf("attached %s\n", request->ifr_name);
	(void)!getchar();
	return 0;
}
