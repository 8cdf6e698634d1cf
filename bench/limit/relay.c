/*
 * relay LISTEN_PORT BACKEND_PORT PROCESSES
 *
 * The limit of the benchmark: what a relay between two sockets on 127.0.0.1 costs when it has no features at all. It
 * accepts, connects, and moves bytes both ways until both sides have ended; no timeout, no choice, no log, no limit.
 * What it costs above nothing is the kernel's work for two TCP connections.
 *
 * Each process has an epoll set of its own; all share the listening socket. A socket is registered once, edge-triggered,
 * and remembers what it is ready for. Small pieces are copied through one buffer of the process. A direction that fills
 * the buffer some times in a row is a stream: it is spliced through a pipe until it brings less.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	BUFFER = 64 << 10,
	PIPE = 1 << 20,
	STREAM_AFTER = 3,     /* full buffers in a row */
	STREAM_LEAST = 4 << 10, /* bytes in one splice */
	BATCH = 256,
	SPARE_PIPES = 64,
};

struct pipe {
	int out, in;
	size_t held;
};

struct bytes {
	size_t from, to;
	char data[];
};

/* One socket of a session, and the direction that begins at it. */
struct end {
	struct session *session;
	int fd;
	bool readable, writable, hung_up; /* hung_up: the peer has sent FIN or RST, so a short read has not drained it */
	bool ended;                       /* its FIN has been read, and passed on */
	unsigned char full;               /* full buffers in a row */
	struct bytes *rest;               /* read here, not yet taken by the other socket */
	struct pipe *pipe;                /* of a stream */
};

struct session {
	struct end ends[2]; /* client, backend */
	bool dead;
	struct session *next; /* dead, until the batch of events that may name it is over */
};

static int epoll, listener;
static struct sockaddr_in backend_address;
static char buffer[BUFFER];
static struct session *dead;
static struct pipe *spare_pipes[SPARE_PIPES];
static int spares;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct pipe *take_pipe(void)
{
	struct pipe *p;
	int fds[2];

	if (spares > 0)
		return spare_pipes[--spares];
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0)
		return NULL;
	fcntl(fds[0], F_SETPIPE_SZ, PIPE); /* a refusal leaves a smaller pipe, which serves too */
	p = malloc(sizeof *p);
	if (!p)
		die("malloc");
	*p = (struct pipe){.out = fds[0], .in = fds[1]};
	return p;
}

/* give_pipe keeps a pipe for the next stream when it is empty and there is room. */
static void give_pipe(struct end *e)
{
	struct pipe *p = e->pipe;

	e->pipe = NULL;
	e->full = 0;
	if (p->held == 0 && spares < SPARE_PIPES) {
		spare_pipes[spares++] = p;
		return;
	}
	close(p->out);
	close(p->in);
	free(p);
}

static void end_session(struct session *s)
{
	s->dead = true;
	s->next = dead;
	dead = s;
	for (struct end *e = s->ends; e < s->ends + 2; e++) {
		close(e->fd);
		free(e->rest);
		if (e->pipe)
			give_pipe(e);
	}
}

/*
 * The steps of a direction return DONE when they could do all they had to, WAIT when a socket must become ready first,
 * FAIL when the session is over.
 */
enum step { DONE, WAIT, FAIL };

static enum step not_ready(bool *readiness)
{
	if (errno != EAGAIN)
		return FAIL;
	*readiness = false;
	return WAIT;
}

/* flush writes what was read before. */
static enum step flush(struct end *from, struct end *to)
{
	struct bytes *r = from->rest;
	struct pipe *p = from->pipe;
	ssize_t n;

	while (r) {
		if (!to->writable)
			return WAIT;
		n = send(to->fd, r->data + r->from, r->to - r->from, MSG_NOSIGNAL);
		if (n < 0)
			return not_ready(&to->writable);
		r->from += n;
		if (r->from == r->to) {
			free(r);
			from->rest = r = NULL;
		}
	}
	while (p && p->held > 0) {
		if (!to->writable)
			return WAIT;
		n = splice(p->out, NULL, to->fd, NULL, p->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n < 0)
			return not_ready(&to->writable);
		p->held -= n;
	}
	return DONE;
}

/* copy moves at most a buffer from one socket to the other, and keeps what that one does not take. */
static enum step copy(struct end *from, struct end *to)
{
	ssize_t n = recv(from->fd, buffer, BUFFER, 0), sent;

	if (n < 0)
		return not_ready(&from->readable);
	if (n == 0) {
		from->ended = true;
		return DONE;
	}
	if (n < BUFFER && !from->hung_up)
		from->readable = false;
	from->full = n == BUFFER ? from->full + 1 : 0;
	if (from->full == STREAM_AFTER)
		from->pipe = take_pipe();
	sent = send(to->fd, buffer, n, MSG_NOSIGNAL);
	if (sent < 0) {
		if (not_ready(&to->writable) == FAIL)
			return FAIL;
		sent = 0;
	}
	if (sent < n) {
		struct bytes *r = malloc(sizeof *r + n - sent);

		if (!r)
			die("malloc");
		*r = (struct bytes){.from = 0, .to = n - sent};
		memcpy(r->data, buffer + sent, n - sent);
		from->rest = r;
	}
	return DONE;
}

/* stream moves at most a pipe from one socket to the other, and goes back to copying when there is little. */
static enum step stream(struct end *from, struct end *to)
{
	ssize_t n = splice(from->fd, NULL, from->pipe->in, NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	enum step step;

	if (n < 0)
		return not_ready(&from->readable);
	from->ended = n == 0;
	from->pipe->held = n;
	step = flush(from, to);
	if (step == DONE && n < STREAM_LEAST)
		give_pipe(from);
	return step;
}

/*
 * move does all that can be done now in the direction from one socket to the other; false ends the session. It reads only
 * when nothing is left of what it read before and the other socket takes bytes, which one that still connects does not.
 */
static bool move(struct end *from, struct end *to)
{
	enum step step = flush(from, to);

	while (step == DONE && from->readable && to->writable && !from->ended) {
		step = from->pipe ? stream(from, to) : copy(from, to);
		if (step == DONE && from->ended)
			shutdown(to->fd, SHUT_WR);
		else if (step == DONE)
			step = flush(from, to);
	}
	return step != FAIL;
}

static void watch(int fd, uint32_t events, void *what)
{
	struct epoll_event ev = {.events = events, .data.ptr = what};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ev) < 0)
		die("epoll_ctl");
}

/* accept_session takes one session, so that those of a burst go to the processes in turn. */
static void accept_session(void)
{
	const uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
	const int on = 1;
	int client, backend;
	struct session *s;

	client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (client < 0) {
		if (errno == EAGAIN || errno == ECONNABORTED)
			return;
		die("accept");
	}
	backend = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (backend < 0)
		die("socket");
	setsockopt(backend, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (connect(backend, (struct sockaddr *)&backend_address, sizeof backend_address) < 0 && errno != EINPROGRESS) {
		close(client);
		close(backend);
		return;
	}
	s = calloc(1, sizeof *s);
	if (!s)
		die("calloc");
	s->ends[0] = (struct end){.session = s, .fd = client};
	s->ends[1] = (struct end){.session = s, .fd = backend};
	watch(client, events, &s->ends[0]);
	watch(backend, events, &s->ends[1]);
}

static void handle(struct end *e, uint32_t events)
{
	struct session *s = e->session;
	struct end *other = e == s->ends ? s->ends + 1 : s->ends;

	if (s->dead)
		return;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->readable = true;
	if (events & EPOLLOUT)
		e->writable = true;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->hung_up = true;
	if (!move(e, other) || !move(other, e) || (e->ended && other->ended))
		end_session(s);
}

static void serve(void)
{
	struct epoll_event events[BATCH];

	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	watch(listener, EPOLLIN | EPOLLEXCLUSIVE, NULL);
	for (;;) {
		int n = epoll_wait(epoll, events, BATCH, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				handle(events[i].data.ptr, events[i].events);
			else
				accept_session();
		}
		while (dead) {
			struct session *s = dead;

			dead = s->next;
			free(s);
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	const int on = 1;
	struct rlimit files;

	if (argc != 4) {
		fprintf(stderr, "usage: relay LISTEN_PORT BACKEND_PORT PROCESSES\n");
		return 2;
	}
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		die("getrlimit");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		die("setrlimit");
	signal(SIGPIPE, SIG_IGN); /* splice has no MSG_NOSIGNAL */
	backend_address = address;
	address.sin_port = htons(atoi(argv[1]));
	backend_address.sin_port = htons(atoi(argv[2]));
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* the sockets it accepts have it too */
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
		die("listen");
	for (int i = atoi(argv[3]); i > 1; i--) {
		pid_t parent = getpid(), child = fork();

		if (child < 0)
			die("fork");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != parent)
				return 1;
			break;
		}
	}
	serve();
}
