package plane

import "io"

// Names for the tests in package plane_test, which need Kubernetes' own encoders.

type Event = event

var (
	DecodeJSONEvent     = decodeJSONEvent
	DecodeProtobufEvent = decodeProtobufEvent
)

// ReadEvents reads a watch to its end and returns the events with their bytes.
func ReadEvents(contentType string, body io.Reader) (events []Event, raws [][]byte, err error) {
	r, err := newEventReader(contentType, body)
	if err != nil {
		return nil, nil, err
	}
	for {
		ev, raw, err := r.next()
		if err != nil {
			return events, raws, err
		}
		events, raws = append(events, ev), append(raws, raw)
	}
}
