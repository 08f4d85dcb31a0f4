package vault

import (
	"encoding/hex"
	"errors"
	"fmt"

	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/resource"
)

func invalid(field, format string, args ...any) error {
	return &resource.Error{Code: resource.Invalid, Field: field, Reason: "REQUEST_INVALID", Message: fmt.Sprintf(format, args...)}
}

func errClosed(name string, x *vault) error {
	e := &resource.Error{Code: resource.Unavailable, Kind: resource.KindRepository, Name: name, Reason: "VAULT_CLOSED", Message: "it is not open here", Remedy: "the manager opens it soon"}
	if x != nil && x.wrong != nil {
		e.Message += ": " + x.wrong.Error()
	}
	return e
}

func errEnded() error {
	return &resource.Error{Code: resource.Precondition, Reason: "SESSION_ENDED", Message: "there is no such session here any more", Remedy: "begin again: nothing that was acknowledged is lost"}
}

// told puts what went wrong in a repository into words for the other side.
func told(name string, err error) error {
	var re *resource.Error
	if err == nil || errors.As(err, &re) {
		return err
	}
	e := &resource.Error{Kind: resource.KindRepository, Name: name, Message: err.Error(), Err: err}
	switch {
	case errors.Is(err, backup.ErrEnded), errors.Is(err, chunkstore.ErrEnded):
		e.Code, e.Reason = resource.Precondition, "SESSION_ENDED"
	case errors.Is(err, backup.ErrNotFound), errors.Is(err, chunkstore.ErrGone):
		e.Code, e.Reason = resource.NotFound, "POINT_UNKNOWN"
	case errors.Is(err, backup.ErrDamaged), errors.Is(err, chunkstore.ErrDamaged):
		e.Code, e.Reason, e.Remedy = resource.Internal, "REPOSITORY_DAMAGED", "run a scrub: it repairs what it can, and names the points that are affected"
	case errors.Is(err, chunkstore.ErrWrongKey):
		e.Code, e.Reason, e.Remedy = resource.Denied, "KEY_WRONG", "give its passphrase, or the recovery key that was shown when it was made"
	case errors.Is(err, chunkstore.ErrForeign):
		e.Code, e.Reason = resource.Precondition, "REPOSITORY_FOREIGN"
	case errors.Is(err, chunkstore.ErrNewer):
		e.Code, e.Reason = resource.Precondition, "REPOSITORY_NEWER"
	case errors.Is(err, chunkstore.ErrKept):
		e.Code, e.Reason, e.Remedy = resource.Precondition, "POINT_KEPT", "let go of it first"
	case errors.Is(err, chunkstore.ErrExists), errors.Is(err, blob.ErrExists):
		e.Code, e.Reason = resource.Exists, "EXISTS"
	case errors.Is(err, blob.ErrFull):
		e.Code, e.Reason, e.Remedy = resource.Exhausted, "REPOSITORY_FULL", "make room, or forget points and collect"
	case errors.Is(err, blob.ErrReplaces):
		e.Code, e.Reason = resource.Precondition, "STORAGE_UNSAFE"
	case errors.Is(err, blob.ErrReadOnly):
		e.Code, e.Reason = resource.Precondition, "REPOSITORY_READ_ONLY"
	default:
		return err
	}
	return e
}

// pointID reads 32 hexadecimal digits.
func pointID(text string) (chunkstore.PointID, error) {
	var id chunkstore.PointID
	if len(text) != 2*len(id) {
		return id, invalid("point", "%q is no point: 32 hexadecimal digits are", clip(text))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return id, invalid("point", "%q is no point: 32 hexadecimal digits are", clip(text))
	}
	return id, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
