#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *worker(void *x) {
	for (;;) pause();
	return x;
}

__attribute__((noinline)) int leaf(int n) { return poll(0, 0, -1) + n; }
__attribute__((noinline)) int middle(int n) { return n > 2 ? leaf(n) + 1 : middle(n + 1) + 2; }

int main(void) {
	pthread_t t[4];
	for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, worker, 0);
	puts("ready");
	fflush(stdout);
	return middle(0);
}
