//go:build linux

package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// UploadOptions say what to upload, as multipart/form-data.
type UploadOptions struct {
	// Connections upload at once, each one file after the other.
	Connections int
	// Count is how many files are uploaded in all, after a small one on each
	// connection that is not counted.
	Count int
	// Size of a file in bytes.
	Size int64
	// Behind puts the form's field user behind the file and not into a header
	// that is meant for everybody, so that who needs it must read the file
	// first. Otherwise X-User-ID is sent to all.
	Behind bool
}

// UploadResult is what was measured. All files are whole when Elapsed ends.
type UploadResult struct {
	Bytes    int64 // of files that were taken
	Failures int64
	LastFail error // nil without failures
	Elapsed  time.Duration
}

const smallFile = 1 << 10

// Uploads loads the target with files.
func Uploads(ctx context.Context, target Target, o UploadOptions, w Window) (UploadResult, error) {
	if !o.Behind {
		target.UserHeader = true
	}
	u := &uploads{opts: o, window: w, block: randomBytes(1 << 20)}
	err := run(target, func(cl *client) error {
		u.client, cl.script = cl, u
		return u.run(ctx)
	})
	if u.client != nil {
		u.result.Failures, u.result.LastFail = u.failures, u.last
	}
	return u.result, err
}

func randomBytes(n int) []byte {
	random := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = random.Read(b)
	return b
}

type uploads struct {
	*client
	opts   UploadOptions
	window Window
	block  []byte // files repeat it
	result UploadResult

	begun    bool
	waiting  []*conn // that have sent their small file
	started  int     // files, without the small ones
	finished int     // that have ended, well or not
}

func (u *uploads) run(ctx context.Context) error {
	for i := range u.opts.Connections {
		c, err := u.connect(i)
		if err != nil {
			return err
		}
		if err := u.upload(c, smallFile); err != nil {
			return err
		}
	}
	for len(u.waiting) < u.opts.Connections {
		if err := u.poll(ctx, time.Second); err != nil {
			return err
		}
	}
	u.begun = true
	u.window.begin()
	start := time.Now()
	for _, c := range u.waiting {
		if err := u.ready(c); err != nil {
			return err
		}
	}
	for u.finished < u.opts.Count {
		if err := u.poll(ctx, time.Second); err != nil {
			return err
		}
	}
	u.result.Elapsed = time.Since(start)
	u.window.end()
	return nil
}

const boundary = "----------------bench0123456789"

func (u *uploads) upload(c *conn, size int64) error {
	start := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n"
	length := int64(len(start)) + size + int64(len(formEnd(c.number)))
	c.left = size + 1 // and the end of the form
	return u.ask(c, []byte(head(u.target, "/v1/files/upload", "multipart/form-data; boundary="+boundary, c.number, length)+start))
}

func formEnd(user int) string {
	return fmt.Sprintf("\r\n--%s\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nuser-%04d\r\n--%s--\r\n", boundary, user, boundary)
}

func (u *uploads) refill(c *conn) {
	switch {
	case c.left > 1:
		n := min(c.left-1, int64(len(u.block)))
		c.out = u.block[:n]
		c.left -= n
	case c.left == 1:
		c.out = []byte(formEnd(c.number))
		c.left = 0
	}
}

func (u *uploads) answered(_ *conn, good bool) {
	if !u.begun {
		return
	}
	if u.finished++; good {
		u.result.Bytes += u.opts.Size
	}
}

func (u *uploads) ready(c *conn) error {
	switch {
	case !u.begun:
		u.waiting = append(u.waiting, c)
		return nil
	case u.started == u.opts.Count:
		return nil
	}
	u.started++
	return u.upload(c, u.opts.Size)
}

func (u *uploads) broke(old *conn) error {
	if u.begun && old.busy {
		u.finished++
	}
	c, err := u.connect(old.number)
	if err != nil {
		return err
	}
	if !u.begun {
		return u.upload(c, smallFile)
	}
	return u.ready(c)
}

func (u *uploads) body(*conn, []byte) error { return nil }
