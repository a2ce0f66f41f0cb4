package directory

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The bounds of what a directory server can make us read.
const (
	maxMessage = 8 << 20 // one entry: a group of 100,000 members fits
	maxDepth   = 16      // of one message; LDAP needs fewer than ten
	maxValues  = 1 << 18 // elements of one message
)

// framed hands on whole LDAP messages that were looked at first. The library
// behind it allocates what a length announces, at any depth: here every length
// lies inside the one around it, and the outermost is bounded.
//
// A read that stands still longer than idle ends; the library's own timeout is
// not used, since it drops what it could not hand on in time and says nothing.
type framed struct {
	net.Conn
	idle   time.Duration
	left   []byte // of the message that is being handed on
	budget int64  // bytes that may still come; negative: no bound
}

// Read implements io.Reader.
func (f *framed) Read(p []byte) (int, error) {
	for len(f.left) == 0 {
		message, err := f.next()
		if err != nil {
			return 0, err
		}
		f.left = message
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

// Write implements io.Writer.
func (f *framed) Write(p []byte) (int, error) {
	if err := f.Conn.SetWriteDeadline(time.Now().Add(f.idle)); err != nil {
		return 0, err
	}
	return f.Conn.Write(p)
}

func (f *framed) next() ([]byte, error) {
	if err := f.Conn.SetReadDeadline(time.Now().Add(f.idle)); err != nil {
		return nil, err
	}
	head := make([]byte, 2, 6)
	if _, err := io.ReadFull(f.Conn, head); err != nil {
		return nil, err
	}
	if head[0] != 0x30 {
		return nil, errors.New("what came is no LDAP message")
	}
	size := int(head[1])
	if size == 0x80 || size > 0x84 {
		return nil, errors.New("an LDAP message has no length that can be believed")
	}
	if more := size - 0x80; more > 0 {
		head = head[:2+more]
		if err := f.rest(head[2:]); err != nil {
			return nil, err
		}
		size = 0
		for _, b := range head[2:] {
			size = size<<8 | int(b)
		}
	}
	if size > maxMessage {
		return nil, fmt.Errorf("an LDAP message of %d bytes: at most %d", size, maxMessage)
	}
	if f.budget >= 0 {
		if f.budget -= int64(size); f.budget < 0 {
			return nil, errors.New("the directory sends more than any company holds")
		}
	}
	message := make([]byte, len(head)+size)
	copy(message, head)
	if err := f.rest(message[len(head):]); err != nil {
		return nil, err
	}
	count := 0
	if err := wellFormed(message[len(head):], 1, &count); err != nil {
		return nil, err
	}
	if size == 0 || message[len(head)] != 0x02 { // the library skips a message without a number
		return nil, errors.New("an LDAP message has no number")
	}
	return message, nil
}

// rest reads what must still come: an end here is no end.
func (f *framed) rest(into []byte) error {
	_, err := io.ReadFull(f.Conn, into)
	if err == io.EOF && len(into) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// wellFormed walks through the elements of one level and what they hold.
func wellFormed(b []byte, depth int, count *int) error {
	if depth > maxDepth {
		return fmt.Errorf("an LDAP message is nested deeper than %d", maxDepth)
	}
	for len(b) > 0 {
		if *count++; *count > maxValues {
			return fmt.Errorf("an LDAP message has more than %d parts", maxValues)
		}
		if len(b) < 2 || b[0]&0x1f == 0x1f { // LDAP has no tags of several bytes
			return errors.New("an LDAP message breaks off or has a strange tag")
		}
		constructed, size, head := b[0]&0x20 != 0, int(b[1]), 2
		if size == 0x80 || size > 0x84 {
			return errors.New("a part of an LDAP message has no length that can be believed")
		}
		if more := size - 0x80; more > 0 {
			if len(b) < 2+more {
				return errors.New("an LDAP message breaks off")
			}
			size, head = 0, 2+more
			for _, x := range b[2:head] {
				size = size<<8 | int(x)
			}
		}
		if size > len(b)-head {
			return errors.New("a part of an LDAP message is longer than the message")
		}
		if constructed {
			if err := wellFormed(b[head:head+size], depth+1, count); err != nil {
				return err
			}
		}
		b = b[head+size:]
	}
	return nil
}
