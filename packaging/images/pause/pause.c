/*
 * pause: what holds a pod's namespaces open. Without libc, it is a few KB on
 * disk and has no memory of its own. It reaps the orphans it inherits when the
 * pod shares its process namespace, and ends on SIGTERM or SIGINT.
 */
#if defined(__x86_64__)
static long call(long nr, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}
enum { RT_SIGPROCMASK = 14, EXIT = 60, WAIT4 = 61, RT_SIGTIMEDWAIT = 128 };
#elif defined(__aarch64__)
static long call(long nr, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
enum { EXIT = 93, RT_SIGPROCMASK = 135, RT_SIGTIMEDWAIT = 137, WAIT4 = 260 };
#else
#error "pause: unknown architecture"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1 };

void _start(void)
{
	unsigned long all = ~0UL;

	call(RT_SIGPROCMASK, SIG_BLOCK, (long)&all, 0, sizeof(all));
	for (;;) {
		switch (call(RT_SIGTIMEDWAIT, (long)&all, 0, 0, sizeof(all))) {
		case SIGCHLD:
			while (call(WAIT4, -1, 0, WNOHANG, 0) > 0)
				;
			break;
		case SIGINT:
		case SIGTERM:
			call(EXIT, 0, 0, 0, 0);
		}
	}
}
