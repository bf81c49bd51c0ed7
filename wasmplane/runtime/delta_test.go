package runtime

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestDelta: a page is what its delta makes of the fresh one, whatever differs.
func TestDelta(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for k := range b {
			b[k] = byte(random.Uint32())
		}
		return b
	}
	fresh := bytesOf(4096)
	for _, size := range []int{0, 1, 2, 7, 8, 9, 24, 100, 4096} {
		for range 50 {
			page := bytes.Clone(fresh)
			for n := size; n > 0; n -= 8 {
				copy(page[random.IntN(len(page)):], bytesOf(min(n, 8)))
			}
			checkDelta(t, page, fresh)
			checkDelta(t, page, nil)
		}
	}
	zeros := make([]byte, 4096)
	checkDelta(t, zeros, fresh)
	if d := appendDelta(nil, zeros, nil); len(d) != 0 {
		t.Errorf("a page of zeros differs from nothing by %d bytes", len(d))
	}
	for at := range 4096 {
		page := bytes.Clone(fresh)
		page[at]++
		if d := checkDelta(t, page, fresh); len(d) > 11 {
			t.Errorf("%d bytes for one that differs", len(d))
		}
	}
}

func checkDelta(t *testing.T, page, fresh []byte) []byte {
	t.Helper()
	d := appendDelta([]byte("before"), page, fresh)[len("before"):]
	got := make([]byte, len(page))
	copy(got, fresh)
	if err := applyDelta(got, d); err != nil || !bytes.Equal(got, page) {
		t.Fatalf("a delta of %d bytes makes another page of it, %v", len(d), err)
	}
	if len(d) > len(page)+8 {
		t.Errorf("a delta of %d bytes for a page of %d", len(d), len(page))
	}
	return d
}

func FuzzApplyDelta(f *testing.F) {
	page, fresh := bytes.Repeat([]byte("page of a guest "), 256), make([]byte, 4096)
	f.Add(appendDelta(nil, page, fresh))
	page[100] = 0
	f.Add(appendDelta(nil, page, bytes.Repeat([]byte("page of a guest "), 256)))
	f.Add([]byte{0, 0})
	f.Add([]byte{1, 1, 2})
	f.Fuzz(func(t *testing.T, delta []byte) {
		whole := make([]byte, 3*4096)
		page := whole[4096 : 2*4096 : 2*4096]
		if err := applyDelta(page, delta); err != nil {
			return
		}
		checkDelta(t, page, nil)
		if len(bytes.Trim(whole[:4096], "\x00")) > 0 || len(bytes.Trim(whole[2*4096:], "\x00")) > 0 {
			t.Error("other pages were changed")
		}
	})
}
