package abi

import (
	"bytes"
	"net/http"
	"reflect"
	"testing"
)

func TestRequestSurvivesTheWire(t *testing.T) {
	for _, want := range []*Request{
		{Stream: 1, Method: "GET", URL: "/api/v1/pods?watch=1", Header: http.Header{"Accept": {"a", "b"}, "User-Agent": {"x"}}},
		{Stream: 1<<32 - 1, Method: "POST", URL: "/", Header: http.Header{}, Body: bytes.Repeat([]byte{0, 1, 255}, 1000)},
	} {
		got, err := DecodeRequest(want.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestHeadSurvivesTheWire(t *testing.T) {
	want := &Head{Status: 410, Header: http.Header{"Content-Type": {"application/json"}}}
	got, err := DecodeHead(want.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	whole := (&Request{Stream: 7, Method: "PUT", URL: "/x", Header: http.Header{"A": {"b"}}, Body: []byte("body")}).Append(nil)
	for n := range whole {
		if _, err := DecodeRequest(whole[:n]); err == nil {
			t.Errorf("a request cut to %d of %d bytes was accepted", n, len(whole))
		}
	}
	if _, err := DecodeRequest(append(whole, 0)); err == nil {
		t.Error("a request with a byte too many was accepted")
	}
	if _, err := DecodeRequest((&Request{Method: "GET"}).Append(nil)); err == nil {
		t.Error("stream number 0 was accepted")
	}
	if _, err := DecodeRequest((&Request{Stream: 1, Header: http.Header{"A": make([]string, MaxHeaders)}}).Append(nil)); err != nil {
		t.Errorf("%d header lines: %v", MaxHeaders, err)
	}
	if _, err := DecodeRequest((&Request{Stream: 1, Header: http.Header{"A": make([]string, MaxHeaders+1)}}).Append(nil)); err == nil {
		t.Errorf("%d header lines were accepted", MaxHeaders+1)
	}
	if _, err := DecodeHeader(FrameHeader{Kind: FrameCollect + 1}.Append(nil)); err == nil {
		t.Error("an unknown kind of frame was accepted")
	}
	if _, err := DecodeHeader(FrameHeader{Kind: FrameBody, Length: MaxFrame + 1}.Append(nil)); err == nil {
		t.Error("a frame above the limit was accepted")
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add((&Request{Stream: 7, Method: "PUT", URL: "/x", Header: http.Header{"A": {"b"}}, Body: []byte("body")}).Append(nil))
	f.Add([]byte{1, 0, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		again, err := DecodeRequest(r.Append(nil))
		if err != nil {
			t.Fatalf("what was decoded cannot be decoded again: %v", err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	f.Add((&Head{Status: 200, Header: http.Header{"A": {"b"}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHead(b); err == nil && (h.Status < 0 || h.Status > 999) {
			t.Fatalf("status %d", h.Status)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(FrameHeader{Kind: FrameBody, Stream: 3, Length: 9}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err == nil && !bytes.Equal(h.Append(nil), b[:HeaderSize]) {
			t.Fatalf("%v does not encode to what it was decoded from", h)
		}
	})
}
