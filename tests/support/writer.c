/* Changes files below /w in ways that a recorder of system calls could miss. The first
 * argument says how, the second seeds what is random. Compiled and run by
 * tests/inplace.rs. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MUST(call) do { if ((call) < 0) { perror(#call); exit(1); } } while (0)

static unsigned next(unsigned *seed, unsigned below) {
	*seed = *seed * 1103515245u + 12345u;
	return (*seed >> 16) % below;
}

static void put(int at, const char *name, const char *text) {
	int fd = openat(at, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0) perror("write");
		close(fd);
	}
}

static void name_of(char *name, unsigned *seed) {
	sprintf(name, "/w/%u/%u", next(seed, 3), next(seed, 5));
}

static void *random_changes(void *argument) {
	unsigned seed = *(unsigned *)argument;
	char a[64], b[64];
	for (int i = 0; i < 250; i++) {
		name_of(a, &seed);
		name_of(b, &seed);
		switch (next(&seed, 12)) {
		case 0: case 1: put(AT_FDCWD, a, b); break;
		case 2: rename(a, b); break;
		case 3: unlink(a); break;
		case 4: rmdir(a); break;
		case 5: mkdir(a, 0755); break;
		case 6: link(a, b); break;
		case 7: symlink(b, a); break;
		case 8: chmod(a, 0600 + next(&seed, 64)); break;
		case 9: {
			/* Through a directory that others move meanwhile. */
			int at = open("/w/1", O_PATH | O_DIRECTORY | O_CLOEXEC);
			if (at >= 0) { put(at, "inside", a); unlinkat(at, "3", 0); close(at); }
			break;
		}
		case 10: renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE); break;
		case 11: rename("/w/0", "/w/t"); rename("/w/1", "/w/0"); rename("/w/t", "/w/1"); break;
		}
	}
	return NULL;
}

static void threads(unsigned seed) {
	pthread_t made[8];
	unsigned seeds[8];
	for (int i = 0; i < 8; i++) {
		seeds[i] = seed * 97 + i;
		if (pthread_create(&made[i], NULL, random_changes, &seeds[i])) exit(1);
	}
	for (int i = 0; i < 8; i++) pthread_join(made[i], NULL);
}

static void forks(unsigned seed) {
	for (int i = 0; i < 200; i++) {
		pid_t pid = fork();
		MUST(pid);
		if (pid == 0) {
			char name[32];
			sprintf(name, "%u", i % 3);
			if (chdir("/w") || chdir(name)) _exit(0);
			sprintf(name, "fork%d", i);
			put(AT_FDCWD, name, "x");
			if (i % 4 == 0) unlink(name);
			if (i % 5 == 0 && fork() == 0) { put(AT_FDCWD, "grandchild", name); _exit(0); }
			_exit(0);
		}
		if (next(&seed, 2)) waitpid(pid, NULL, 0);
	}
	while (wait(NULL) > 0) {}
}

static void *swap(void *stop) {
	while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
		renameat2(AT_FDCWD, "/w/here", AT_FDCWD, "/w/there", RENAME_EXCHANGE);
	}
	return NULL;
}

/* Another thread exchanges two directories while files in them are written. */
static void races(unsigned seed) {
	int stop = 0;
	pthread_t other;
	mkdir("/w/here", 0755);
	mkdir("/w/there", 0755);
	if (pthread_create(&other, NULL, swap, &stop)) exit(1);
	for (int i = 0; i < 300; i++) {
		char name[64];
		sprintf(name, "/w/here/%u", next(&seed, 40));
		put(AT_FDCWD, name, next(&seed, 2) ? "one" : "two");
		sprintf(name, "/w/there/%u", next(&seed, 40));
		if (next(&seed, 3) == 0) unlink(name); else chmod(name, 0600);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	pthread_join(other, NULL);
}

static void deep(unsigned levels) {
	char name[] = "a-directory-with-a-name-that-is-rather-long-but-not-longer-than-it-may-be";
	MUST(chdir("/w"));
	for (unsigned i = 0; i < levels; i++) {
		MUST(mkdir(name, 0755));
		MUST(chdir(name));
	}
	put(AT_FDCWD, "bottom", "deep");
	for (unsigned i = 0; i < levels / 2; i++) MUST(chdir(".."));
	put(AT_FDCWD, "middle", "half");
	MUST(rename(name, "moved"));
	MUST(chdir("moved"));
	put(AT_FDCWD, "after", "moved");
}

/* A process's own links in /proc mean something else to whoever looks from outside. */
static void proc(void) {
	char name[64];
	put(AT_FDCWD, "/w/old", "old");
	put(AT_FDCWD, "/w/0/kept", "kept");
	int path = open("/base/a", O_PATH | O_CLOEXEC);
	MUST(path);
	sprintf(name, "/proc/self/fd/%d", path);
	MUST(chmod(name, 0640));
	int reading = open("/base/b", O_RDONLY | O_CLOEXEC);
	MUST(reading);
	sprintf(name, "/dev/fd/%d", reading);
	int writing = open(name, O_WRONLY | O_TRUNC | O_CLOEXEC);
	MUST(writing);
	MUST(write(writing, "through a descriptor", 20));
	int directory = open("/base/d", O_PATH | O_DIRECTORY | O_CLOEXEC);
	MUST(directory);
	sprintf(name, "/proc/%d/fd/%d/new", getpid(), directory);
	put(AT_FDCWD, name, "by number");
	MUST(chdir("/base/e"));
	put(AT_FDCWD, "/proc/self/cwd/new", "by directory");
	put(AT_FDCWD, "/proc/thread-self/root/base/new", "by root");
	int again = open("/base/c", O_RDONLY | O_CLOEXEC);
	MUST(again);
	sprintf(name, "/base/link/%d", again);
	MUST(chmod(name, 0604));
	/* Up from where the link leads, not from where it is. */
	int other = open("/still/d", O_PATH | O_DIRECTORY | O_CLOEXEC);
	MUST(other);
	sprintf(name, "/proc/self/fd/%d/../beside", other);
	put(AT_FDCWD, name, "beside the descriptor's");
	MUST(chdir("/still/e"));
	put(AT_FDCWD, "/proc/self/cwd/../d/../up", "up from the directory");
	MUST(chmod("/proc/self/cwd/.", 0711));
}

/* The same links where it can't be seen from the path. */
static void detours(unsigned seed) {
	char name[64];
	int directory = open("/still/d", O_PATH | O_DIRECTORY | O_CLOEXEC);
	MUST(directory);
	MUST(chdir("/still/e"));
	if (seed == 1) sprintf(name, "/base/link/%d/over", directory);
	else if (seed == 2) sprintf(name, "//proc/self/cwd/over");
	else sprintf(name, "/proc/self/fd/../cwd/over");
	put(AT_FDCWD, name, "over a link");
}

static void descriptors(void) {
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	pid_t pid = fork();
	MUST(pid);
	char byte = 'x', space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
		.msg_controllen = sizeof space };
	if (pid == 0) {
		int fd = open("/base/a", O_RDWR);
		MUST(fd);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
		MUST(sendmsg(pair[0], &message, 0));
		_exit(0);
	}
	MUST(recvmsg(pair[1], &message, 0));
	waitpid(pid, NULL, 0);
	int fd;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	MUST(rename("/base/a", "/base/moved"));
	MUST(ftruncate(fd, 3));
	MUST(fchmod(fd, 0606));
	char *map = mmap(NULL, 3, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	map[0] = '!';
	/* Attributes by a descriptor that can't write. */
	int reading = open("/base/b", O_RDONLY);
	struct timespec times[2] = { { 1000000, 0 }, { 1000000, 0 } };
	MUST(futimens(reading, times));
	MUST(fchown(reading, 3, 4));
	int hidden = open("/w", O_TMPFILE | O_RDWR, 0644);
	if (hidden >= 0) {
		char name[64];
		MUST(write(hidden, "appears", 7));
		sprintf(name, "/proc/self/fd/%d", hidden);
		MUST(linkat(AT_FDCWD, name, AT_FDCWD, "/w/appeared", AT_SYMLINK_FOLLOW));
	}
	/* Shares memory with its parent until it executes something. */
	pid = vfork();
	if (pid == 0) {
		int made = open("/w/vforked", O_CREAT | O_WRONLY, 0644);
		(void)made;
		execl("/bin/busybox", "busybox", "touch", "/w/executed", NULL);
		_exit(1);
	}
	put(AT_FDCWD, "/w/parent", "after");
	waitpid(pid, NULL, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/w/socket" };
	int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(bind(socket_fd, (struct sockaddr *)&address, sizeof address));
	MUST(unlink("/w/socket"));
	MUST(mknod("/w/pipe", S_IFIFO | 0600, 0));
	syscall(SYS_io_uring_setup, 8, NULL);
}

/* As apt's methods do: another user, and nothing executed since. */
static void user(void) {
	pid_t pid = fork();
	MUST(pid);
	if (pid == 0) {
		int own = open("/base/own", O_RDONLY);
		MUST(own);
		if (setresgid(1500, 1500, 1500) || setresuid(1500, 1500, 1500)) _exit(1);
		put(AT_FDCWD, "/w/open/other", "made by another");
		rename("/w/open/other", "/w/open/renamed");
		chmod("/w/open/renamed", 0600);
		if (fchmod(own, 0611)) _exit(1);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	if (status) exit(1);
}

/* A link outside of the recorded root, and one that takes a directory's name. */
static void links(void) {
	int in = open("/kept/file", O_RDONLY | O_CLOEXEC);
	MUST(in);
	MUST(dup2(in, 0));
	put(AT_FDCWD, "/dev/stdin", "through a link of /dev");
	MUST(symlink("/kept", "/w/link"));
	MUST(mkdir("/w/d", 0755));
	put(AT_FDCWD, "/w/d/file", "remembered");
	MUST(unlink("/w/d/file"));
	MUST(rmdir("/w/d"));
	MUST(link("/w/link", "/w/d"));
	put(AT_FDCWD, "/w/d/new", "behind the link");
	MUST(unlink("/w/d"));
	MUST(mkdir("/w/d", 0755));
}

/* Another mode for what was opened to be read. */
static void change_mode(const char *path, mode_t mode) {
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(fchmod(fd, mode));
	close(fd);
}

/* cap_net_raw, permitted and effective. */
static void give_capability(const char *path) {
	unsigned capability[5] = { 0x02000001, 1 << 13, 0, 0, 0 };
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(fsetxattr(fd, "security.capability", capability, sizeof capability, 0));
	close(fd);
}

/* Attributes by descriptors that can't write, and nothing else about these files, of which
 * no later step moves the directory. */
static void attributes(void) {
	/* The time of modification alone, as tar does. */
	struct timespec times[2] = { { 0, UTIME_OMIT }, { 1000000, 0 } };
	int fd = open("/kept/b", O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(futimens(fd, times));
	fd = open("/kept/own", O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(fchown(fd, 5, 6));
	/* No owner at all, which takes the capability. */
	fd = open("/kept/capable", O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(fchown(fd, -1, -1));
	/* One of two names. */
	change_mode("/kept/other", 0604);
	/* Directories, and the one above all. */
	change_mode("/kept/d", 0711);
	change_mode("/", 0711);
	/* By a name that is gone at once, in a directory that nobody knew. */
	MUST(mkdir("/new", 0755));
	MUST(link("/kept/c", "/new/c"));
	fd = open("/new/c", O_RDONLY | O_CLOEXEC);
	MUST(fd);
	MUST(unlink("/new/c"));
	MUST(rmdir("/new"));
	MUST(fchmod(fd, 0640));
	/* In a directory that was moved away, and back. */
	MUST(rename("/still", "/moved"));
	change_mode("/moved/d/file", 0600);
	MUST(rename("/moved", "/still"));
	/* In one that has taken another's place. */
	MUST(rename("/kept/e", "/w/e"));
	MUST(mkdir("/kept/e", 0755));
	put(AT_FDCWD, "/kept/e/file", "made");
	change_mode("/kept/e/file", 0601);
	change_mode("/w/e", 0701);
	give_capability("/kept/a");
	/* Behind what is a link by the end. */
	change_mode("/kept/n/d/file", 0602);
	MUST(rename("/kept/n", "/w/n"));
	MUST(symlink("/w/n", "/kept/n"));
}

int main(int count, char **words) {
	const char *how = count > 1 ? words[1] : "";
	unsigned seed = count > 2 ? (unsigned)atoi(words[2]) : 1;
	for (int i = 0; i < 3; i++) {
		char name[32];
		sprintf(name, "/w/%d", i);
		mkdir("/w", 0755);
		mkdir(name, 0755);
	}
	mkdir("/w/open", 0777);
	chmod("/w/open", 01777);
	if (!strcmp(how, "threads")) threads(seed);
	else if (!strcmp(how, "forks")) forks(seed);
	else if (!strcmp(how, "races")) races(seed);
	else if (!strcmp(how, "deep")) deep(40);
	else if (!strcmp(how, "deeper")) deep(80);
	else if (!strcmp(how, "proc")) proc();
	else if (!strcmp(how, "detours")) detours(seed);
	else if (!strcmp(how, "descriptors")) descriptors();
	else if (!strcmp(how, "user")) user();
	else if (!strcmp(how, "links")) links();
	else if (!strcmp(how, "attributes")) attributes();
	else if (!strcmp(how, "capability")) give_capability(words[2]);
	else if (!strcmp(how, "mode")) change_mode(words[2], 0751);
	else return 2;
	return 0;
}
