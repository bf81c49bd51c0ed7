package abi

import (
	"encoding/binary"
	"fmt"
)

// Kind says what a frame is.
type Kind uint32

// The kinds of frames, all from host to guest.
const (
	FramePark    Kind = iota // leave the pump; nothing must remain on the stack
	FrameStart               // payload: Start
	FrameHead                // payload: Head
	FrameBody                // payload: bytes of the response body
	FrameEnd                 // the response body ends here
	FrameFail                // payload: text; the exchange failed in the transport
	FrameCollect             // collect garbage; an image of memory is about to be taken
)

func (k Kind) String() string {
	switch k {
	case FramePark:
		return "park"
	case FrameStart:
		return "start"
	case FrameHead:
		return "head"
	case FrameBody:
		return "body"
	case FrameEnd:
		return "end"
	case FrameFail:
		return "fail"
	case FrameCollect:
		return "collect"
	}
	return fmt.Sprintf("kind(%d)", uint32(k))
}

// HeaderSize is the length of an encoded FrameHeader in bytes.
const HeaderSize = 12

// FrameHeader precedes each payload in the mailbox.
type FrameHeader struct {
	Kind   Kind
	Stream uint32
	Length uint32
}

// Append appends the encoded header to b.
func (h FrameHeader) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Kind))
	b = binary.LittleEndian.AppendUint32(b, h.Stream)
	return binary.LittleEndian.AppendUint32(b, h.Length)
}

// DecodeHeader decodes the first HeaderSize bytes of b.
func DecodeHeader(b []byte) (FrameHeader, error) {
	if len(b) < HeaderSize {
		return FrameHeader{}, fmt.Errorf("frame header of %d bytes, want %d", len(b), HeaderSize)
	}
	h := FrameHeader{
		Kind:   Kind(binary.LittleEndian.Uint32(b)),
		Stream: binary.LittleEndian.Uint32(b[4:]),
		Length: binary.LittleEndian.Uint32(b[8:]),
	}
	if h.Kind > FrameCollect {
		return FrameHeader{}, fmt.Errorf("frame of unknown kind %d", h.Kind)
	}
	if h.Length > MaxFrame {
		return FrameHeader{}, fmt.Errorf("frame of %d bytes, at most %d are allowed", h.Length, MaxFrame)
	}
	return h, nil
}
