/* Does to a tun device what no program should, and says what it is doing, a line for each kind of it; last "done".
 *
 *     hostile DEVICE SEED
 *
 * All that is random follows from the seed. Any call may fail. If the device lets one wait for ever, SIGALRM ends the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define LARGE (1 << 20)
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const char *device;
static uint64_t state;
/* Places in memory: where nothing is, or what may not be read, or not be written, or that ends in the middle. */
static uintptr_t places[12];
static char *large;

static uint64_t random64(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static unsigned below(unsigned limit)
{
	return (unsigned)(random64() % limit);
}

static void say(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
}

static void *wild(void)
{
	return (void *)places[below(COUNT(places))];
}

static void find_places(void)
{
	char *pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t base = (uintptr_t)pages;

	large = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED || large == MAP_FAILED)
		exit(3);
	for (unsigned at = 0; at < 4 * PAGE; at++)
		pages[at] = (char)random64();
	mprotect(pages, PAGE, PROT_READ);
	mprotect(pages + 2 * PAGE, PAGE, PROT_NONE);
	munmap(pages + 3 * PAGE, PAGE);
	places[0] = 0;
	places[1] = 1;
	places[2] = base;
	places[3] = base + PAGE;
	places[4] = base + PAGE + 2048;
	places[5] = base + 2 * PAGE - 2;
	places[6] = base + 2 * PAGE;
	places[7] = base + 3 * PAGE;
	places[8] = (uintptr_t)large;
	places[9] = (uintptr_t)1 << 46;
	places[10] = (uintptr_t)0xffffffff81000000u;
	places[11] = UINTPTR_MAX - 7;
}

static int open_device(void)
{
	return open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

static int attach(int fd, const char *name, int flags)
{
	struct ifreq request = { .ifr_flags = (short)flags };

	memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ));
	return ioctl(fd, TUNSETIFF, &request);
}

static int attached(const char *name, int flags)
{
	int fd = open_device();

	attach(fd, name, flags);
	return fd;
}

static void ioctls(void)
{
	int files[] = { open_device(), attached("h%d", IFF_TUN), attached("h%d", IFF_TAP | IFF_VNET_HDR) };
	const unsigned types[] = { 'T', 0x89, below(256) };

	for (unsigned type = 0; type < COUNT(types); type++) {
		for (unsigned number = 0; number < 256; number++) {
			for (unsigned direction = 0; direction < 4; direction++) {
				const unsigned sizes[] = { 0, 4, 8, 16, 40, 1 + below(16383) };
				unsigned size = sizes[below(COUNT(sizes))];
				unsigned long command = _IOC(direction, types[type], number, size);

				ioctl(files[below(COUNT(files))], command, wild());
			}
		}
	}
	for (unsigned at = 0; at < COUNT(files); at++)
		close(files[at]);
}

static void vectors(void)
{
	static struct iovec pieces[IOV_MAX];
	int files[] = { attached("h%d", IFF_TUN | IFF_NO_PI), attached("h%d", IFF_TAP | IFF_VNET_HDR) };

	for (unsigned round = 0; round < 120; round++) {
		unsigned count = round % 3 ? 1 + below(IOV_MAX) : IOV_MAX;
		int fd = files[round & 1];

		for (unsigned at = 0; at < count; at++) {
			const size_t lengths[] = { 0, 1, below(2000), LARGE, SIZE_MAX >> 1, SIZE_MAX };
			int is_sane = round % 4 != 0;

			pieces[at].iov_base = is_sane ? large : wild();
			pieces[at].iov_len = is_sane ? below(LARGE / 64) : lengths[below(COUNT(lengths))];
		}
		switch (round % 6) {
		case 0: case 1: writev(fd, pieces, (int)count); break;
		case 2: case 3: readv(fd, pieces, (int)count); break;
		case 4: pwritev(fd, pieces, (int)count, (off_t)(random64() >> 1)); break;
		default: preadv(fd, pieces, (int)count, (off_t)(random64() >> 1)); break;
		}
		write(fd, large, below(LARGE));
		read(fd, wild(), below(INT_MAX));
		write(fd, wild(), below(INT_MAX));
	}
	close(files[0]);
	close(files[1]);
}

static void filters(void)
{
	static struct sock_filter code[UINT16_MAX];
	int fd = attached("h%d", IFF_TAP | IFF_NO_PI);

	for (unsigned round = 0; round < 200; round++) {
		const unsigned lengths[] = { 0, 1, 1 + below(64), BPF_MAXINSNS, UINT16_MAX };
		struct sock_fprog program = { .filter = round % 5 ? code : wild() };
		struct tun_filter *addresses = (struct tun_filter *)large;
		int number = (int)below(64);

		program.len = (unsigned short)lengths[below(COUNT(lengths))];
		for (unsigned at = 0; at < 64; at++) {
			code[at].code = (uint16_t)(round % 2 ? random64() : (BPF_JMP | BPF_JA));
			code[at].jt = (uint8_t)random64();
			code[at].jf = (uint8_t)random64();
			code[at].k = (uint32_t)random64();
		}
		ioctl(fd, TUNATTACHFILTER, &program);
		addresses->flags = (uint16_t)random64();
		addresses->count = (uint16_t)(round % 3 ? random64() : UINT16_MAX);
		ioctl(fd, TUNSETTXFILTER, addresses);
		ioctl(fd, TUNSETSTEERINGEBPF, &number);
		ioctl(fd, TUNSETFILTEREBPF, &number);
		ioctl(fd, TUNSETQUEUE, large);
		ioctl(fd, TUNSETSNDBUF, &number);
		write(fd, large, 60);
		ioctl(fd, TUNDETACHFILTER, 0);
	}
	close(fd);
}

static void names(void)
{
	static const char *const nasty[] = {
		"\033[2J\033[H", "\033]0;owned\007", "a\nb\rc", "%d%d%s%n", "....", ".", "..", "a/b", "lo",
		"\xff\xfe\x80", "\xe2\x80\xae" "abc", "{\"a\":1}", "$(reboot)", "'; --", "all", "default", "sixteen-bytes-xx",
	};
	int files[100];

	for (unsigned at = 0; at < COUNT(files); at++) {
		char name[IFNAMSIZ];

		for (unsigned byte = 0; byte < sizeof(name); byte++)
			name[byte] = (char)random64();
		files[at] = attached(at < COUNT(nasty) ? nasty[at] : name, at % 2 ? IFF_TUN : IFF_TAP);
		ioctl(files[at], TUNSETPERSIST, at % 4 == 0);
		write(files[at], large, 64);
		if (at % 8 == 0)
			ioctl(files[at], TUNSETPERSIST, 0);
	}
	for (unsigned at = 0; at < COUNT(files); at++)
		close(files[at]);
}

static void *wait_in_read(void *file)
{
	char buffer[100];

	return (void *)read((int)(intptr_t)file, buffer, sizeof(buffer));
}

static void nothing(int signal)
{
	(void)signal;
}

/* Closes files under calls that wait, and kills who waits. */
static void closes(void)
{
	struct sigaction action = { .sa_handler = nothing };

	sigaction(SIGUSR1, &action, NULL);
	for (unsigned round = 0; round < 40; round++) {
		pthread_t threads[4];
		int fd = open(device, O_RDWR | O_CLOEXEC);
		pid_t child;

		attach(fd, "h%d", IFF_TUN | IFF_NO_PI);
		for (unsigned at = 0; at < COUNT(threads); at++)
			if (pthread_create(&threads[at], NULL, wait_in_read, (void *)(intptr_t)fd))
				exit(3);
		child = fork();
		if (child == 0) {
			struct pollfd polled = { .fd = fd, .events = POLLIN };

			if (round % 2)
				poll(&polled, 1, -1);
			else
				wait_in_read((void *)(intptr_t)fd);
			_exit(0);
		}
		for (unsigned turns = below(200); round % 3 == 0 && turns > 0; turns--)
			sched_yield();
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		if (round % 4 == 0)
			close(fd);
		for (unsigned at = 0; at < COUNT(threads); at++) {
			/* Again until it has begun to wait, and so is told. */
			while (pthread_kill(threads[at], SIGUSR1) == 0 && pthread_tryjoin_np(threads[at], NULL) == EBUSY)
				sched_yield();
		}
		if (round % 4)
			close(fd);
	}
}

/* Processes that open all they may, and keep it until each of them has. */
static void opens(void)
{
	int told[2], go_on[2];
	unsigned opened, all = 0;

	if (pipe(told) || pipe(go_on))
		exit(3);
	for (unsigned child = 0; child < 6; child++) {
		if (fork() == 0) {
			struct rlimit limit;
			char byte;
			int fd;

			close(told[0]);
			close(go_on[1]);
			getrlimit(RLIMIT_NOFILE, &limit);
			limit.rlim_cur = limit.rlim_max < 900 ? limit.rlim_max : 900;
			setrlimit(RLIMIT_NOFILE, &limit);
			for (opened = 0; (fd = open_device()) >= 0; opened++)
				if (opened % 64 == 0)
					attach(fd, "f%d", IFF_TUN);
			(void)!write(told[1], &opened, sizeof(opened));
			close(told[1]);
			(void)!read(go_on[0], &byte, 1);
			_exit(0);
		}
	}
	close(told[1]);
	close(go_on[0]);
	while (read(told[0], &opened, sizeof(opened)) == sizeof(opened))
		all += opened;
	printf("opened %u\n", all);
	close(told[0]);
	close(go_on[1]);
	while (wait(NULL) > 0)
		;
}

/* Opens from many network namespaces, for who may make them; changes the devices that come with tunnels there under calls. */
static void namespaces(void)
{
	int files[24];

	for (unsigned at = 0; at < COUNT(files); at++) {
		int control;
		struct ifreq request = { .ifr_name = "h0" };

		unshare(CLONE_NEWNET);
		files[at] = attached("h%d", IFF_TUN | IFF_MULTI_QUEUE);
		control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		for (unsigned round = 0; round < 8; round++) {
			request.ifr_flags = (short)(round % 2 ? 0 : IFF_UP);
			ioctl(control, SIOCSIFFLAGS, &request);
			request.ifr_mtu = (int)random64();
			ioctl(control, SIOCSIFMTU, &request);
			write(files[at], large, 100);
			read(files[at], large, 100);
		}
		memcpy(request.ifr_newname, "\033[31m", 6);
		ioctl(control, SIOCSIFNAME, &request);
		close(control);
	}
	for (unsigned at = 0; at < COUNT(files); at++)
		close(files[at]);
}

int main(int count, char **words)
{
	static const struct {
		const char *name;
		void (*act)(void);
	} acts[] = {
		{ "ioctls", ioctls }, { "vectors", vectors }, { "filters", filters }, { "names", names },
		{ "closes", closes }, { "opens", opens },     { "namespaces", namespaces },
	};

	if (count != 3)
		return 2;
	device = words[1];
	state = strtoull(words[2], NULL, 0) | 1;
	signal(SIGPIPE, SIG_IGN);
	alarm(100);
	find_places();
	for (unsigned at = 0; at < COUNT(acts); at++) {
		say(acts[at].name);
		acts[at].act();
	}
	say("done");
	return 0;
}
