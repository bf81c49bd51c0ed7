package main

// #include <malloc.h>
//
// // SQLite and wasmtime allocate with malloc. glibc gives nearly each thread an arena of its own, and gives back to
// // the system only what is free at an arena's end: at idle some 5 MiB that nobody uses. A thread has its arena as soon
// // as it is there; this runs before there are any.
// __attribute__((constructor)) static void use_one_arena(void) { mallopt(M_ARENA_MAX, 1); }
import "C"

// trimMalloc gives back the pages that are free, wherever they lie. It is cheap.
func trimMalloc() { C.malloc_trim(0) }
