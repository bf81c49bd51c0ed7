package plane

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// event is what the plane must know of a watch event. The event itself goes to
// the guest as it came.
type event struct {
	Type       string // ADDED, MODIFIED, DELETED, BOOKMARK or ERROR
	Namespace  string
	Name       string
	UID        string
	Revision   string // metadata.resourceVersion
	Deleting   bool   // it has a deletion timestamp
	Controller string // kind of the owner that controls it, "" if none does
	InitialEnd bool   // the bookmark that ends the initial events
	Refresh    bool   // it says no more than that something lives, see prints
	Changed    bool   // a field has changed that must not wait, see noteChange
}

// kind is the event as declarations name it; 0 for bookmarks and errors.
func (e event) kind() controllers.Events {
	switch {
	case e.Type == "ADDED":
		return controllers.Added
	case e.Type == "MODIFIED" && e.Deleting:
		return controllers.Terminating
	case e.Type == "MODIFIED":
		return controllers.Modified
	case e.Type == "DELETED":
		return controllers.Deleted
	}
	return 0
}

const (
	bookmark   = "BOOKMARK"
	errorEvent = "ERROR"

	// initialEndAnnotation marks the bookmark that ends the initial events of a
	// watch with sendInitialEvents (KEP-3157).
	initialEndAnnotation = "k8s.io/initial-events-end"
)

// eventReader splits the body of a watch into events.
type eventReader struct {
	r        *bufio.Reader
	protobuf bool
}

// readAhead is how much of a watch is read beyond the event that is wanted, in
// bytes. Watches are silent for most of the time and should hold little.
const readAhead = 512

// newEventReader reads a watch whose response has the given content type.
func newEventReader(contentType string, body io.Reader) (*eventReader, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("watch with content type %q: %w", contentType, err)
	}
	switch media {
	case "application/vnd.kubernetes.protobuf":
		return &eventReader{r: bufio.NewReaderSize(body, readAhead), protobuf: true}, nil
	case "application/json":
		return &eventReader{r: bufio.NewReaderSize(body, readAhead)}, nil
	}
	return nil, fmt.Errorf("watch with content type %q; protobuf and JSON are understood", contentType)
}

// next returns the next event and its bytes as they came. Its error is io.EOF
// where the watch ends between two events.
func (e *eventReader) next() (event, []byte, error) {
	var raw []byte
	var err error
	if e.protobuf {
		raw, err = e.nextFrame()
	} else {
		raw, err = e.nextLine()
	}
	if err != nil {
		return event{}, nil, err
	}
	var ev event
	if e.protobuf {
		ev, err = decodeProtobufEvent(raw[frameLength:])
	} else {
		ev, err = decodeJSONEvent(raw)
	}
	return ev, raw, err
}

// frameLength is the size of the big-endian length in front of each protobuf
// event.
const frameLength = 4

func (e *eventReader) nextFrame() ([]byte, error) {
	var length [frameLength]byte
	if _, err := io.ReadFull(e.r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > abi.MaxFrame-frameLength {
		return nil, fmt.Errorf("watch event of %d bytes", n)
	}
	raw := make([]byte, frameLength+n)
	copy(raw, length[:])
	if _, err := io.ReadFull(e.r, raw[frameLength:]); err != nil {
		return nil, unexpected(err)
	}
	return raw, nil
}

func (e *eventReader) nextLine() ([]byte, error) {
	var line []byte
	for {
		part, err := e.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > abi.MaxFrame:
			return nil, fmt.Errorf("watch event of more than %d bytes", abi.MaxFrame)
		case err == nil && len(bytes.TrimSpace(line)) == 0:
			line = line[:0]
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func decodeJSONEvent(b []byte) (event, error) {
	var e struct {
		Type   string `json:"type"`
		Object struct {
			Metadata struct {
				Namespace       string            `json:"namespace"`
				Name            string            `json:"name"`
				UID             string            `json:"uid"`
				ResourceVersion string            `json:"resourceVersion"`
				DeletionTime    *string           `json:"deletionTimestamp"`
				Annotations     map[string]string `json:"annotations"`
				OwnerReferences []struct {
					Kind       string `json:"kind"`
					Controller bool   `json:"controller"`
				} `json:"ownerReferences"`
			} `json:"metadata"`
		} `json:"object"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return event{}, fmt.Errorf("decoding a watch event: %w", err)
	}
	m := e.Object.Metadata
	controller := ""
	for _, o := range m.OwnerReferences {
		if o.Controller {
			controller = o.Kind
		}
	}
	return event{
		Type:       e.Type,
		Namespace:  m.Namespace,
		Name:       m.Name,
		UID:        m.UID,
		Revision:   m.ResourceVersion,
		Deleting:   m.DeletionTime != nil,
		Controller: controller,
		InitialEnd: m.Annotations[initialEndAnnotation] == "true",
	}, nil
}

// protobufMagic starts every object in Kubernetes' protobuf encoding.
var protobufMagic = []byte("k8s\x00")

// Field numbers, from apimachinery's generated.proto files.
const (
	watchEventType   = 1 // meta/v1 WatchEvent
	watchEventObject = 2
	rawExtensionRaw  = 1 // runtime RawExtension
	unknownTypeMeta  = 1 // runtime Unknown
	unknownRaw       = 2
	typeMetaVersion  = 1 // runtime TypeMeta
	typeMetaKind     = 2
	objectMetadata   = 1 // every API object
	metaName         = 1 // meta/v1 ObjectMeta
	metaNamespace    = 3
	metaUID          = 5
	metaRevision     = 6
	metaDeletion     = 9
	metaAnnotations  = 12
	metaOwners       = 13
	metaManaged      = 17
	mapKey           = 1
	mapValue         = 2
	ownerKind        = 1 // meta/v1 OwnerReference
	ownerController  = 6
)

func decodeProtobufEvent(b []byte) (event, error) {
	var e event
	var object []byte
	err := fields(b, func(n protowire.Number, v []byte) {
		switch n {
		case watchEventType:
			e.Type = string(v)
		case watchEventObject:
			object = v
		}
	})
	if err != nil {
		return event{}, err
	}
	_, raw, ok, err := unwrap(object)
	if err != nil {
		return event{}, err
	}
	if !ok || e.Type == errorEvent {
		return e, nil // a Status has no metadata worth reading
	}
	if raw, err = field(raw, objectMetadata); err != nil {
		return event{}, err
	}
	err = fields(raw, func(n protowire.Number, v []byte) {
		switch n {
		case metaName:
			e.Name = string(v)
		case metaNamespace:
			e.Namespace = string(v)
		case metaUID:
			e.UID = string(v)
		case metaRevision:
			e.Revision = string(v)
		case metaDeletion:
			e.Deleting = true
		case metaAnnotations:
			k, err := field(v, mapKey)
			if err != nil || string(k) != initialEndAnnotation {
				return
			}
			v, err := field(v, mapValue)
			e.InitialEnd = err == nil && string(v) == "true"
		case metaOwners:
			if kind, controls := decodeOwner(v); controls {
				e.Controller = kind
			}
		}
	})
	if err != nil {
		return event{}, err
	}
	return e, nil
}

// unwrap returns an object's kind and its encoding; ok says that it is in protobuf.
func unwrap(extension []byte) (kind string, object []byte, ok bool, err error) {
	raw, err := field(extension, rawExtensionRaw)
	if err != nil {
		return "", nil, false, err
	}
	if raw, ok = bytes.CutPrefix(raw, protobufMagic); !ok {
		return "", nil, false, nil
	}
	var typeMeta []byte
	err = fields(raw, func(n protowire.Number, v []byte) {
		switch n {
		case unknownTypeMeta:
			typeMeta = v
		case unknownRaw:
			object = v
		}
	})
	if err != nil {
		return "", nil, false, err
	}
	k, err := field(typeMeta, typeMetaKind)
	return string(k), object, err == nil, err
}

// objectOf is unwrap for an event as it came. A line of JSON is no frame: read as a
// length, its first bytes are more than any frame has.
func objectOf(raw []byte) (kind string, object []byte, ok bool) {
	if len(raw) < frameLength || uint64(binary.BigEndian.Uint32(raw)) != uint64(len(raw)-frameLength) {
		return "", nil, false
	}
	extension, err := field(raw[frameLength:], watchEventObject)
	if err != nil {
		return "", nil, false
	}
	kind, object, ok, err = unwrap(extension)
	return kind, object, ok && err == nil
}

// decodeOwner says of an owner reference which kind the owner is, and whether it
// controls the object. One that cannot be read does not.
func decodeOwner(b []byte) (kind string, controls bool) {
	err := eachField(b, func(f fieldValue) {
		switch {
		case f.number == ownerKind && f.typ == protowire.BytesType:
			kind = string(f.value)
		case f.number == ownerController && f.typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(f.value)
			controls = v != 0
		}
	})
	return kind, controls && err == nil
}

// metadataEvent makes of an event in protobuf the one that the API server sends to
// who asked for metadata alone. Every kind has its metadata in the same field.
func metadataEvent(raw []byte) ([]byte, error) {
	_, object, ok := objectOf(raw)
	if !ok {
		return nil, errors.New("cutting metadata out of a watch event: it is not in protobuf")
	}
	metadata, err := field(object, objectMetadata)
	if err != nil {
		return nil, err
	}
	typ, err := field(raw[frameLength:], watchEventType)
	if err != nil {
		return nil, err
	}
	message := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	typeMeta := message(message(nil, typeMetaVersion, []byte("meta.k8s.io/v1")), typeMetaKind, []byte(metadataKind))
	unknown := message(message(nil, unknownTypeMeta, typeMeta), unknownRaw, message(nil, objectMetadata, metadata))
	extension := message(nil, rawExtensionRaw, append(bytes.Clone(protobufMagic), unknown...))
	event := message(message(make([]byte, frameLength), watchEventType, typ), watchEventObject, extension)
	binary.BigEndian.PutUint32(event, uint32(len(event)-frameLength))
	return event, nil
}

// field returns the last length-delimited field with number want, nil if there
// is none.
func field(b []byte, want protowire.Number) (found []byte, err error) {
	err = fields(b, func(n protowire.Number, v []byte) {
		if n == want {
			found = v
		}
	})
	return found, err
}

// fields calls f with each length-delimited field of a message.
func fields(b []byte, f func(n protowire.Number, v []byte)) error {
	return eachField(b, func(v fieldValue) {
		if v.typ == protowire.BytesType {
			f(v.number, v.value)
		}
	})
}

// fieldValue is one field of a message.
type fieldValue struct {
	number protowire.Number
	typ    protowire.Type
	value  []byte // as encoded; of a length-delimited field without the length
	whole  []byte // with its tag
}

// eachField calls f with each field of a message.
func eachField(b []byte, f func(fieldValue)) error {
	for len(b) > 0 {
		n, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return fmt.Errorf("decoding a watch event: %w", protowire.ParseError(tag))
		}
		size := protowire.ConsumeFieldValue(n, typ, b[tag:])
		if size < 0 {
			return fmt.Errorf("decoding a watch event: %w", protowire.ParseError(size))
		}
		v := b[tag : tag+size]
		if typ == protowire.BytesType {
			v, _ = protowire.ConsumeBytes(v)
		}
		f(fieldValue{number: n, typ: typ, value: v, whole: b[:tag+size]})
		b = b[tag+size:]
	}
	return nil
}
