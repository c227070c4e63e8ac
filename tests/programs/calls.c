/* Makes calls on a tun device, one after the other, and prints what each returns.
 *
 *     calls DEVICE CALL...
 *
 * CALL is one of
 *
 *     attach=NAME       TUNSETIFF of a tun without PI header
 *     ioctl=COMMAND,VALUE, ioctl32=COMMAND,VALUE
 *                       an ioctl that passes a value, both in hexadecimal; as a 32-bit program makes it
 *     read0, write0, pread0, pwrite0, read0_32, write0_32
 *                       of nothing; as a 32-bit program makes them
 *     pipe0             a write of nothing to a pipe
 *     namespace=COMMAND an ioctl that returns a network namespace, in hexadecimal: 0 if it is the one that the program is in, 1 if
 *                       it is another, 2 if it is not closed on exec
 *     unshare=FLAGS     unshare, in hexadecimal
 *     ring              io_uring_setup
 *     euid              geteuid
 *     readonly, writeonly   opens the device again, for what follows
 *     repeat=N          the next one is made N times
 *     fork              the rest is done by a child
 *     thread            the rest is done by a thread that is not the first
 *     threads=N         the rest is done by N threads at a time, and printed by the first alone
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct rest {
	const char *device;
	char **calls;
	int fd;
	int is_quiet;
};

static void *perform(void *argument);

/* The system call of a 32-bit program, whatever this one is: its arguments have 32 bits, and so have addresses. */
static long call32(long number, unsigned first, unsigned second, unsigned third)
{
#ifdef __x86_64__
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"((long)first), "c"((long)second), "d"((long)third)
			 : "memory", "r8", "r9", "r10", "r11");
	if ((int)result < 0) {
		errno = -(int)result;
		return -1;
	}
	return (int)result;
#else
	(void)number, (void)first, (void)second, (void)third;
	errno = ENOSYS;
	return -1;
#endif
}

/* What an open file is, as the call namespace=COMMAND has it. */
static long compare_namespace(int fd)
{
	struct stat own, other;

	if (fd < 0 || stat("/proc/thread-self/ns/net", &own) != 0 || fstat(fd, &other) != 0)
		return -1;
	if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC))
		return 2;
	return own.st_dev != other.st_dev || own.st_ino != other.st_ino;
}

static void in_threads(const struct rest *rest, int count)
{
	pthread_t threads[64];
	struct rest rests[64];

	for (int i = 0; i < count; i++) {
		rests[i] = *rest;
		rests[i].is_quiet |= i > 0;
		if (pthread_create(&threads[i], NULL, perform, &rests[i]) != 0)
			exit(1);
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

static void *perform(void *argument)
{
	struct rest rest = *(struct rest *)argument;
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	unsigned times = 1;
	char buffer[1];

	for (; *rest.calls; rest.calls++) {
		const char *call = *rest.calls;
		unsigned long value = 0;
		unsigned command = 0, number = 0;
		long result = -1;

		if (sscanf(call, "attach=%15s", request.ifr_name) == 1) {
			result = ioctl(rest.fd, TUNSETIFF, &request);
		} else if (sscanf(call, "ioctl=%x,%lx", &command, &value) == 2) {
			result = ioctl(rest.fd, command, value);
		} else if (sscanf(call, "ioctl32=%x,%lx", &command, &value) == 2) {
			result = call32(54, rest.fd, command, value);
		} else if (sscanf(call, "namespace=%x", &command) == 1) {
			result = compare_namespace(ioctl(rest.fd, command));
		} else if (sscanf(call, "unshare=%x", &command) == 1) {
			result = unshare(command);
		} else if (strcmp(call, "ring") == 0) {
			char parameters[120] = { 0 };
			result = syscall(SYS_io_uring_setup, 4, parameters);
		} else if (strcmp(call, "euid") == 0) {
			result = geteuid();
		} else if (strcmp(call, "read0") == 0) {
			result = read(rest.fd, buffer, 0);
		} else if (strcmp(call, "write0") == 0) {
			result = write(rest.fd, buffer, 0);
		} else if (strcmp(call, "pread0") == 0) {
			result = pread(rest.fd, buffer, 0, 0);
		} else if (strcmp(call, "pwrite0") == 0) {
			result = pwrite(rest.fd, buffer, 0, 0);
		} else if (strcmp(call, "read0_32") == 0) {
			result = call32(3, rest.fd, 0, 0);
		} else if (strcmp(call, "write0_32") == 0) {
			result = call32(4, rest.fd, 0, 0);
		} else if (strcmp(call, "pipe0") == 0) {
			int ends[2];

			result = pipe(ends) == 0 ? write(ends[1], buffer, 0) : -1;
		} else if (strcmp(call, "readonly") == 0 || strcmp(call, "writeonly") == 0) {
			rest.fd = open(rest.device, call[0] == 'r' ? O_RDONLY : O_WRONLY);
			result = rest.fd < 0 ? -1 : 0;
		} else if (sscanf(call, "repeat=%u", &times) == 1) {
			continue;
		} else if (strcmp(call, "fork") == 0) {
			if (fork() != 0)
				_exit(wait(NULL) < 0);
			continue;
		} else if (strcmp(call, "thread") == 0 || sscanf(call, "threads=%u", &number) == 1) {
			rest.calls++;
			in_threads(&rest, number ? number % 65 : 1);
			return NULL;
		} else {
			exit(2);
		}
		if (!rest.is_quiet) {
			printf("%s: %ld%s%s\n", call, result, result < 0 ? " " : "",
			       result < 0 ? strerrorname_np(errno) : "");
			fflush(stdout);
		}
		if (times > 1) {
			times--;
			rest.calls--;
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct rest rest = { 0 };

	if (argc < 3)
		return 2;
	rest.device = argv[1];
	rest.calls = argv + 2;
	rest.fd = open(rest.device, O_RDWR);
	if (rest.fd < 0) {
		printf("open: %s\n", strerrorname_np(errno));
		return 1;
	}
	perform(&rest);
	return 0;
}
