package main

// #include <malloc.h>
import "C"

// SQLite and wasmtime allocate with malloc. glibc gives nearly each thread an arena of its own, and gives back to the
// system only what is free at an arena's end: at idle some 5 MiB that nobody uses.

// useOneArena is called before there are threads that allocate.
func useOneArena() { C.mallopt(C.M_ARENA_MAX, 1) }

// trimMalloc gives back the pages that are free, wherever they lie. It is cheap.
func trimMalloc() { C.malloc_trim(0) }
