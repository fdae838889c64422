package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"difylb/pkg/lb"
)

// unavailable turns an error of etcd's client into one of kind
// lb.ErrUnavailable whose text says what is the matter and what to look at.
// An error that has a kind already, and the caller's own cancellation, pass.
func unavailable(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *lb.Error
	if errors.As(err, &known) || errors.Is(err, lb.ErrInvalid) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s: %w", op, lb.Errorf(lb.ErrUnavailable, "%s", reason(err)))
}

// unreached is unavailable for an error of this client: where there is no
// connection at all, it says so and names the endpoints.
func (c *client) unreached(op string, err error) error {
	if timedOut(err) {
		if at := c.unconnected(); at != "" {
			return fmt.Errorf("%s: %w", op, lb.Errorf(lb.ErrUnavailable, "etcd can't be reached at %s", at))
		}
	}
	return unavailable(op, err)
}

// unanswered is unreached for a write: one that was sent and not answered may
// have been carried out, or may yet be.
func (c *client) unanswered(op string, err error) error {
	if timedOut(err) && c.unconnected() == "" {
		return fmt.Errorf("%s: %w", op, lb.Errorf(lb.ErrUnavailable, "etcd does not answer; whether the change was made is not known"))
	}
	return c.unreached(op, err)
}

// unconnected returns the endpoints when there is no connection to any of them.
func (c *client) unconnected() string {
	c.mu.Lock()
	cli := c.cli
	c.mu.Unlock()
	if cli == nil || cli.ActiveConnection().GetState() == connectivity.Ready {
		return ""
	}
	return strings.Join(cli.Endpoints(), ", ")
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// reason says in words what etcd's error means.
func reason(err error) string {
	switch {
	case is(err, rpctypes.ErrNoSpace):
		return "etcd is out of space (alarm NOSPACE): compact, defragment, disarm the alarm, or raise the quota"
	case is(err, rpctypes.ErrAuthFailed):
		return "etcd refused the user name or password"
	case is(err, rpctypes.ErrUserEmpty):
		return "etcd wants a user name and password, and none were given"
	case is(err, rpctypes.ErrPermissionDenied):
		return "etcd denied permission to this user for our keys"
	case is(err, rpctypes.ErrInvalidAuthToken), is(err, rpctypes.ErrAuthOldRevision):
		return "etcd no longer accepts the authentication of this connection"
	case is(err, rpctypes.ErrNoLeader):
		return "etcd has no leader (quorum lost?)"
	case timedOut(err):
		return "etcd does not answer"
	}
	return "etcd: " + err.Error()
}

func is(err error, kind error) bool {
	var ee, want rpctypes.EtcdError
	if errors.As(err, &ee) && errors.As(kind, &want) {
		return ee.Error() == want.Error()
	}
	return errors.Is(err, kind) || status.Convert(err).Message() == status.Convert(kind).Message()
}

// ambiguous says whether a write that ended with err may have been, or may
// yet be, carried out.
func ambiguous(err error) bool {
	if is(err, rpctypes.ErrNoSpace) || is(err, rpctypes.ErrPermissionDenied) || is(err, rpctypes.ErrAuthFailed) ||
		is(err, rpctypes.ErrInvalidAuthToken) || is(err, rpctypes.ErrAuthOldRevision) || is(err, rpctypes.ErrUserEmpty) {
		return false
	}
	var ee rpctypes.EtcdError
	if errors.As(err, &ee) {
		switch ee.Code() {
		case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.NotFound, codes.ResourceExhausted:
			return false
		}
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.PermissionDenied, codes.Unauthenticated:
		return false
	}
	return !errors.Is(err, clientv3.ErrNoAvailableEndpoints)
}
