package snapshot

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

const benchPageSize = 4096

// benchPages are n pages of which half cannot be compressed, about as those of a
// Go heap.
func benchPages(n int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	pages := make([][]byte, n)
	for k := range pages {
		pages[k] = make([]byte, benchPageSize)
		for m := range benchPageSize / 2 {
			pages[k][m] = byte(random.Uint32())
		}
	}
	return pages
}

func each(pages [][]byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for k, page := range pages {
			if !yield(k, page) {
				return
			}
		}
	}
}

func newBenchStore(b *testing.B) *Store {
	s, err := Open(filepath.Join(b.TempDir(), "snapshots.db"), Identity{"module", "datastore"}, benchPageSize, func(why string) { b.Error(why) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// BenchmarkLoad reads a snapshot into memory, which is most of a wake.
func BenchmarkLoad(b *testing.B) {
	for _, mib := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			s := newBenchStore(b)
			pages := benchPages(mib << 20 / benchPageSize)
			if _, err := s.Save("guest", Head{}, Clock{}, each(pages)); err != nil {
				b.Fatal(err)
			}
			memory := make([]byte, mib<<20)
			b.SetBytes(int64(len(memory)))
			for b.Loop() {
				err := s.Load("guest", func(_ Head, pages Pages) error {
					return pages(func(k int, page []byte) error {
						copy(memory[k*benchPageSize:], page)
						return nil
					})
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSave saves a guest of 4 MiB of which some pages, spread evenly, changed
// since the last time. It waits for the disk.
func BenchmarkSave(b *testing.B) {
	for _, changed := range []int{0, 16, 256, 1024} {
		b.Run(fmt.Sprintf("%d-pages", changed), func(b *testing.B) {
			s := newBenchStore(b)
			pages := benchPages(1024)
			if _, err := s.Save("guest", Head{}, Clock{}, each(pages)); err != nil {
				b.Fatal(err)
			}
			written := 0
			for b.Loop() {
				for k := range changed {
					pages[k*len(pages)/changed][0]++
				}
				n, err := s.Save("guest", Head{}, Clock{}, each(pages))
				if err != nil {
					b.Fatal(err)
				}
				written += n
			}
			b.ReportMetric(float64(written)/float64(b.N), "written-B/op")
		})
	}
}
