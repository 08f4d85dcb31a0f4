package manager

import (
	"errors"
	"fmt"
	"net"
	"net/mail"
	"strings"
)

// SMTP is how the manager sends mail.
type SMTP struct {
	// Server is HOST:PORT. Port 465 speaks TLS at once; others begin it when the server offers it.
	Server string
	// From is the sender's address.
	From string
	// User and PasswordFile log in; empty: without. A password is never sent without TLS.
	User, PasswordFile string
	// CA is a PEM file to believe in place of the system's CAs.
	CA string
	// Plain allows mail without TLS.
	Plain bool
}

func (s *SMTP) validate() error {
	if s.Server == "" {
		if s.From+s.User+s.PasswordFile != "" {
			return errors.New("options for mail were given, but no --smtp-server")
		}
		return nil
	}
	if host, port, err := net.SplitHostPort(s.Server); err != nil || host == "" || port == "" {
		return fmt.Errorf("mail server %q: must be HOST:PORT, such as mail.example.org:587", s.Server)
	}
	if a, err := mail.ParseAddress(s.From); err != nil || a.Address != s.From || strings.ContainsAny(s.From, "\r\n") {
		return fmt.Errorf("sender of mail %q: must be an address, such as drover@example.org", s.From)
	}
	if s.User != "" && s.PasswordFile == "" {
		return errors.New("a user for mail was given, but no file with the password")
	}
	return nil
}
