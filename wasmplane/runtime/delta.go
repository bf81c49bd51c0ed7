package runtime

import (
	"encoding/binary"
	"errors"
	"math/bits"
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
	differs := func(at int) bool {
		word := binary.LittleEndian.Uint64(page[at:])
		if len(fresh) > 0 {
			word ^= binary.LittleEndian.Uint64(fresh[at:])
		}
		return word != 0
	}
	done := 0
	for at := 0; at < len(page); at += wordSize {
		if !differs(at) {
			continue
		}
		end := at + wordSize
		for next := end; next < len(page) && next < end+sameWords*wordSize; next += wordSize {
			if differs(next) {
				end = next + wordSize
			}
		}
		b = binary.AppendUvarint(b, uint64(at-done)/wordSize)
		b = binary.AppendUvarint(b, uint64(end-at)/wordSize)
		b = append(b, page[at:end]...)
		done, at = end, end-wordSize
	}
	return b
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
