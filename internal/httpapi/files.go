package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
)

// statuses are HTTP's words for Connect's codes, as the Connect protocol has them.
var statuses = map[connect.Code]int{
	connect.CodeInvalidArgument: http.StatusBadRequest, connect.CodeNotFound: http.StatusNotFound, connect.CodeAlreadyExists: http.StatusConflict,
	connect.CodeAborted: http.StatusConflict, connect.CodeFailedPrecondition: http.StatusBadRequest, connect.CodePermissionDenied: http.StatusForbidden,
	connect.CodeUnauthenticated: http.StatusUnauthorized, connect.CodeResourceExhausted: http.StatusTooManyRequests, connect.CodeUnavailable: http.StatusServiceUnavailable,
}

// refuse answers an HTTP request with an error, in the form that Connect clients understand.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, ctx context.Context, err error) {
	ce := rpc.Error(ctx, s.log, told(err))
	if ew := connect.NewErrorWriter(); ew.IsSupported(r) {
		if werr := ew.Write(w, r, ce); werr != nil {
			s.log.Debug("api: answer", "err", werr)
		}
		return
	}
	status, ok := statuses[ce.Code()]
	if !ok {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The connection may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(map[string]string{"code": ce.Code().String(), "message": ce.Message()})
}

// serveImage sends an image's file to a host, or a part of it (Range).
func (s *Server) serveImage(w http.ResponseWriter, r *http.Request) {
	if err := may(r.Context(), auth.VerbReport, resource.KindImage); err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	sum := r.PathValue("sha256")
	f, err := s.m.ImageFile(sum)
	if err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	defer f.Close()
	w.Header().Set("Etag", strconv.Quote(sum))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// offsetHeader says how much of an upload is there.
const offsetHeader = "Upload-Offset"

func (s *Server) uploaded(w http.ResponseWriter, r *http.Request) {
	if err := may(r.Context(), auth.VerbCreate, resource.KindImage); err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	n, err := s.m.Uploaded(r.PathValue("name"))
	if err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	w.Header().Set(offsetHeader, strconv.FormatInt(n, 10))
}

// upload takes a piece of an image, from ?offset= on; with ?last=1 it is the last.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	ctx, name := r.Context(), r.PathValue("name")
	if err := may(ctx, auth.VerbCreate, resource.KindImage); err != nil {
		(auditor{s}).done(ctx, "Upload", resource.KindImage, name, err)
		s.refuse(w, r, ctx, err)
		return
	}
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 {
		s.refuse(w, r, ctx, &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Field: "offset", Reason: "OUT_OF_RANGE", Message: "must be a number of bytes"})
		return
	}
	last := r.URL.Query().Get("last") == "1"
	i, err := s.m.Upload(ctx, name, offset, r.Body, last)
	if last || err != nil {
		(auditor{s}).done(ctx, "Upload", resource.KindImage, name, err)
	}
	if err != nil {
		s.refuse(w, r, ctx, err)
		return
	}
	b, err := rpc.JSON{}.Marshal(i)
	if err != nil {
		s.refuse(w, r, ctx, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the connection may be gone
}
