package abi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
)

// Request is an HTTP request of the guest. Who asks is not part of it: the host
// knows which guest it runs.
//
// Encoding: stream uvarint, method, URL, headers, body. A text is its length as
// uvarint and its bytes. Headers are the number of lines as uvarint, then each
// line as name and value.
type Request struct {
	Stream uint32
	Method string
	URL    string // path and query, as in http.Request.RequestURI
	Header http.Header
	Body   []byte
}

// Head is the status line and the headers of a response.
//
// Encoding: status uvarint, headers as in Request.
type Head struct {
	Status int
	Header http.Header
}

// Append appends the encoded request to b.
func (r *Request) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(r.Stream))
	b = appendText(b, r.Method)
	b = appendText(b, r.URL)
	b = appendHeader(b, r.Header)
	b = binary.AppendUvarint(b, uint64(len(r.Body)))
	return append(b, r.Body...)
}

// DecodeRequest decodes one request; b must hold nothing else. The result does
// not alias b.
func DecodeRequest(b []byte) (*Request, error) {
	d := decoder{rest: b}
	r := &Request{
		Stream: uint32(d.uvarint(1<<32 - 1)),
		Method: d.text(),
		URL:    d.text(),
		Header: d.header(),
	}
	r.Body = append([]byte(nil), d.bytes()...)
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("decoding request: %w", err)
	}
	if r.Stream == 0 {
		return nil, errors.New("decoding request: stream number 0 is reserved")
	}
	return r, nil
}

// Append appends the encoded head to b.
func (h *Head) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(h.Status))
	return appendHeader(b, h.Header)
}

// DecodeHead decodes one head; b must hold nothing else.
func DecodeHead(b []byte) (*Head, error) {
	d := decoder{rest: b}
	h := &Head{Status: int(d.uvarint(999)), Header: d.header()}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("decoding response head: %w", err)
	}
	return h, nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendHeader(b []byte, h http.Header) []byte {
	n := 0
	for _, vs := range h {
		n += len(vs)
	}
	b = binary.AppendUvarint(b, uint64(n))
	for k, vs := range h {
		for _, v := range vs {
			b = appendText(b, k)
			b = appendText(b, v)
		}
	}
	return b
}

var (
	errShort = errors.New("ends too early")
	errRange = errors.New("number out of range")
)

// decoder reads from rest and keeps the first error.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.rest = nil
}

func (d *decoder) uvarint(most uint64) uint64 {
	v, n := binary.Uvarint(d.rest)
	switch {
	case d.err != nil:
		return 0
	case n == 0:
		d.fail(errShort)
		return 0
	case n < 0 || v > most:
		d.fail(errRange)
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint(MaxRequest)
	if n > uint64(len(d.rest)) {
		d.fail(errShort)
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) header() http.Header {
	// A line takes at least two bytes: a forged count cannot make us allocate.
	n := d.uvarint(min(MaxHeaders, uint64(len(d.rest)/2)))
	h := make(http.Header, n)
	for range n {
		k, v := d.text(), d.text()
		if d.err != nil {
			return nil
		}
		h.Add(k, v)
	}
	return h
}

func (d *decoder) end() error {
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.rest))
	}
	return d.err
}
