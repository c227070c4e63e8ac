/* Does with a tun device what programs do with any descriptor, and prints what each call returns: a number, or the name of an error.
 *
 *     descriptor DEVICE
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result)
{
	if (result < 0)
		printf("%s: %s\n", what, strerrorname_np(errno));
	else
		printf("%s: %ld\n", what, result);
}

static long attach(int fd, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };

	strcpy(request.ifr_name, name);
	return ioctl(fd, TUNSETIFF, &request);
}

static void say_opened(const char *what, const char *path, int flags)
{
	int fd = open(path, flags, 0600);

	say(what, fd < 0 ? fd : attach(fd, "fx0"));
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "/dev/net/tun";
	struct stat status;
	struct statx extended;
	char bytes[100] = { 0x45 }, path[64];
	int ends[2], fd = open(device, O_RDWR | O_NONBLOCK), number = 0;
	FILE *file = tmpfile();

	say("attach", attach(fd, "fo0"));
	say("fstat", fstat(fd, &status));
	printf("is a character device: %d %u:%u\n", S_ISCHR(status.st_mode), major(status.st_rdev), minor(status.st_rdev));
	say("stat", stat(device, &status));
	printf("is a character device: %d %u:%u\n", S_ISCHR(status.st_mode), major(status.st_rdev), minor(status.st_rdev));
	say("statx", statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &extended));
	printf("is a character device: %d %u:%u\n", S_ISCHR(extended.stx_mode), extended.stx_rdev_major, extended.stx_rdev_minor);
	say("access", access(device, R_OK | W_OK));
	say("execute", access(device, X_OK));
	if (pipe2(ends, O_NONBLOCK) || fwrite(bytes, 1, sizeof bytes, file) != sizeof bytes || fflush(file))
		return 1;
	say("splice out", splice(fd, NULL, ends[1], NULL, 4096, 0));
	say("write to a pipe", write(ends[1], bytes, 10));
	say("splice in", splice(ends[0], NULL, fd, NULL, 4096, 0));
	say("tee", tee(ends[0], fd, 4096, 0));
	say("sendfile in", sendfile(fd, fileno(file), &(off_t){ 0 }, 28));
	say("sendfile out", sendfile(ends[1], fd, NULL, 28));
	say("copy_file_range in", copy_file_range(fileno(file), &(off_t){ 0 }, fd, NULL, 28, 0));
	say("copy_file_range out", copy_file_range(fd, NULL, fileno(file), NULL, 28, 0));
	say("mmap private", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
	say("mmap shared", mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
	say("fsync", fsync(fd));
	say("fdatasync", fdatasync(fd));
	say("ftruncate", ftruncate(fd, 0));
	say("fallocate", fallocate(fd, 0, 0, 10));
	say("isatty", isatty(fd) ? 1 : -1);
	say("lseek", lseek(fd, 0, SEEK_CUR));
	say("pread", pread(fd, bytes, 10, 0));
	say("pread before the beginning", pread(fd, bytes, 10, -1));
	say("pwrite", pwrite(fd, bytes, 28, 5));
	say("FIONREAD", ioctl(fd, FIONREAD, &number));
	say("F_GETFL", (fcntl(fd, F_GETFL) & ~0100000));
	say("F_SETFL O_APPEND", fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK));
	say("F_GETFL", (fcntl(fd, F_GETFL) & ~0100000));
	say("F_SETFL O_DIRECT", fcntl(fd, F_SETFL, O_DIRECT | O_NONBLOCK));
	say("F_SETFL", fcntl(fd, F_SETFL, O_NONBLOCK));
	say("F_GETPIPE_SZ", fcntl(fd, F_GETPIPE_SZ));
	say("flock", flock(fd, LOCK_EX | LOCK_NB));
	say("vmsplice", vmsplice(fd, &(struct iovec){ bytes, 1 }, 1, 0));
	say_opened("open O_TRUNC", device, O_RDWR | O_TRUNC);
	say_opened("open O_CREAT", device, O_RDWR | O_CREAT);
	say_opened("open O_CREAT O_EXCL", device, O_RDWR | O_CREAT | O_EXCL);
	say_opened("open O_RDONLY", device, O_RDONLY);
	say_opened("open O_WRONLY", device, O_WRONLY);
	say_opened("open O_NOFOLLOW", device, O_RDWR | O_NOFOLLOW);
	say_opened("open O_DIRECTORY", device, O_RDONLY | O_DIRECTORY);
	say_opened("open O_DIRECT", device, O_RDWR | O_DIRECT);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	say_opened("open by its descriptor", path, O_RDWR);

	int only = open(device, O_RDONLY), copy = dup(fd);
	say("write to what is read only", write(only, bytes, 28));
	say("read into nothing", read(fd, NULL, 0));
	say("dup reads", read(copy, bytes, 10));
	say("dup writes", write(copy, bytes, 28));
	fcntl(copy, F_SETFL, 0);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	say("dup2", dup2(fd, copy) == copy ? 0 : -1);
	close(fd);
	pid_t child = fork();
	if (child == 0)
		_exit(write(copy, bytes, 28) == 28 ? 0 : 1);
	waitpid(child, &number, 0);
	say("child writes", number);
	say("close", close(copy));
	for (number = 0; number < 50; number++) {
		if (attach(only, "fo0") != 0)
			break;
		close(only);
		only = open(device, O_RDWR | O_CLOEXEC);
	}
	say("names that are free when close returns", number);
	struct epoll_event event = { .events = EPOLLIN };
	int set = epoll_create1(0);
	attach(only, "fo0");
	say("epoll", epoll_ctl(set, EPOLL_CTL_ADD, only, &event));
	say("close_range", close_range(only, only, 0));
	say("read of what is closed", read(only, bytes, 10));
	return 0;
}
