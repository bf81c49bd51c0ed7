package runtime

import (
	"encoding/binary"
	"strings"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// A guest sees the files that it was given and no others: a directory "/" with
// nothing to list, in which they are found by their whole path, to be read. They
// are not the host's files, and nothing can be written. Go opens and reads a file
// in one go, so that an open one is no part of a snapshot.

const (
	errnoNametoolong = 37
	errnoNoent       = 44
	errnoNotdir      = 54
	errnoRofs        = 69
	errnoNfile       = 41

	filetypeDirectory   = 3
	filetypeRegularFile = 4

	prestatSize  = 8
	filestatSize = 64

	// rootFD is the descriptor of the directory. Go looks for such ones behind the
	// standard streams.
	rootFD = abi.MailboxFD + 1

	// maxFiles bounds how many are open at a time.
	maxFiles = 16

	// What path_open can be asked for besides opening: to create, to be told if it
	// exists, to empty it; and to write to it.
	oflagsChange = 1 | 4 | 8
	rightFdWrite = 1 << 6
)

// file is an open file: what has not been read.
type file struct {
	size int
	rest string
}

// fdPrestatGet tells Go of the directory. It goes on past what is none, until there
// is no such descriptor.
func fdPrestatGet(c call) uint32 {
	switch fd := c.u32(0); {
	case fd < rootFD:
		return errnoNotdir
	case fd > rootFD:
		return errnoBadf
	}
	b := c.bytes(c.u32(1), prestatSize)
	if b == nil {
		return errnoFault
	}
	clear(b)
	binary.LittleEndian.PutUint32(b[4:], uint32(len("/")))
	return errnoSuccess
}

func fdPrestatDirName(c call) uint32 {
	if c.u32(0) != rootFD {
		return errnoBadf
	}
	b := c.bytes(c.u32(1), min(c.u32(2), 1))
	if b == nil {
		return errnoFault
	}
	copy(b, "/")
	return errnoSuccess
}

// maxPath is the length of the longest path in bytes, as in Linux.
const maxPath = 4096

// lookup finds a file by the arguments for the directory and the path.
func (c call) lookup(fd, path, length uint32) (content string, errno uint32) {
	if fd != rootFD {
		return "", errnoBadf
	}
	b := c.bytes(path, length)
	switch {
	case b == nil:
		return "", errnoFault
	case len(b) > maxPath: // it is about to be copied
		return "", errnoNametoolong
	}
	content, ok := c.config.Files["/"+strings.TrimPrefix(string(b), "/")]
	if !ok {
		return "", errnoNoent
	}
	return content, errnoSuccess
}

func pathOpen(c call) uint32 {
	content, errno := c.lookup(c.u32(0), c.u32(2), c.u32(3))
	if errno == errnoFault || errno == errnoBadf || errno == errnoNametoolong {
		return errno
	}
	if c.u32(4)&oflagsChange != 0 || uint64(c.args[5].I64())&rightFdWrite != 0 {
		return errnoRofs
	}
	if errno != errnoSuccess {
		return errno
	}
	if len(c.files) >= maxFiles {
		return errnoNfile
	}
	fd := uint32(rootFD + 1)
	for c.files[fd] != nil {
		fd++
	}
	if c.files == nil {
		c.Instance.files = map[uint32]*file{}
	}
	c.files[fd] = &file{size: len(content), rest: content}
	return c.putUint32(c.u32(8), fd)
}

// readFile is fd_read of an open file.
func (c call) readFile(f *file) uint32 {
	total := 0
	ok := c.iovecs(func(b []byte) bool {
		n := copy(b[:min(len(b), maxWrite-total)], f.rest)
		f.rest = f.rest[n:]
		total += n
		return n == len(b) && total < maxWrite
	})
	if !ok {
		return errnoFault
	}
	return c.putUint32(c.u32(3), uint32(total))
}

func fdFilestatGet(c call) uint32 {
	f := c.files[c.u32(0)]
	if f == nil {
		return errnoBadf
	}
	return c.putFilestat(c.u32(1), f.size)
}

func pathFilestatGet(c call) uint32 {
	content, errno := c.lookup(c.u32(0), c.u32(2), c.u32(3))
	if errno != errnoSuccess {
		return errno
	}
	return c.putFilestat(c.u32(4), len(content))
}

func (c call) putFilestat(ptr uint32, size int) uint32 {
	b := c.bytes(ptr, filestatSize)
	if b == nil {
		return errnoFault
	}
	clear(b)
	b[16] = filetypeRegularFile
	binary.LittleEndian.PutUint64(b[24:], 1) // links
	binary.LittleEndian.PutUint64(b[32:], uint64(size))
	return errnoSuccess
}

func fdClose(c call) uint32 {
	delete(c.files, c.u32(0))
	return errnoSuccess
}
