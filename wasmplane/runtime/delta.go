package runtime

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"unsafe"
)

// A delta is how a page differs from the same page of a fresh instance. Most pages
// that a guest has written to differ by a few words: an object among others, the
// garbage collector's notes. It is a sequence of
//
//	how many words are the same       uvarint
//	how many words after them follow  uvarint, not 0
//	these words
//
// up to the last word that differs.
const wordSize = 8

// sameWords is how many words that are the same it takes to end a run of others. Each
// run costs two bytes or more, and time.
const sameWords = 2

var errDelta = errors.New("the difference of a page makes no sense")

// appendDelta appends to b how page differs from fresh, which is as long or empty: then
// it stands for zeros. It appends nothing if it does not.
func appendDelta(b, page, fresh []byte) []byte {
	if len(fresh) == 0 {
		fresh = zeros[:len(page)]
	}
	words, was := wordsOf(page), wordsOf(fresh)
	done := 0
	for at := 0; at < len(words); at++ {
		if words[at] == was[at] {
			continue
		}
		end := at + 1
		for next := end; next < len(words) && next < end+sameWords; next++ {
			if words[next] != was[next] {
				end = next + 1
			}
		}
		b = binary.AppendUvarint(b, uint64(at-done))
		b = binary.AppendUvarint(b, uint64(end-at))
		b = append(b, page[at*wordSize:end*wordSize]...)
		done, at = end, end
	}
	return b
}

// zeros is the page of an instance's memory that its module does not fill.
var zeros = make([]byte, PageSize)

// wordsOf is the same memory. Pages are aligned, and a whole number of words.
func wordsOf(page []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(page))), len(page)/wordSize)
}

// applyDelta makes of the page of a fresh instance the one that delta was made of.
func applyDelta(page, delta []byte) error {
	at := 0
	for len(delta) > 0 {
		same, n := binary.Uvarint(delta)
		if n <= 0 {
			return errDelta
		}
		delta = delta[n:]
		others, n := binary.Uvarint(delta)
		if n <= 0 {
			return errDelta
		}
		delta = delta[n:]
		words := uint64(len(page)-at) / wordSize
		if rest, less := bits.Sub64(words, same, 0); less != 0 || others == 0 || others > rest || others > uint64(len(delta))/wordSize {
			return errDelta
		}
		at += int(same) * wordSize
		n = int(others) * wordSize
		copy(page[at:at+n], delta)
		at += n
		delta = delta[n:]
	}
	return nil
}
