package resource

import (
	"encoding/hex"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
)

// CheckSite says what is wrong with a site.
func CheckSite(s *v1.Site) error {
	f := begin(KindSite, s.GetMeta(), false)
	checkEnums(f, s.GetSpec())
	checkText(f, "spec.description", s.GetSpec().GetDescription(), 1024)
	if tz := s.GetSpec().GetTimeZone(); tz != "" {
		if _, err := time.LoadLocation(tz); err != nil || strings.HasPrefix(tz, "Local") {
			f.Add("spec.time_zone", "TIME_ZONE_UNKNOWN", "%q is not in the IANA time zone database; use a name such as Europe/Berlin", tz)
		}
	}
	return f.Err()
}

// CheckHost says what is wrong with a host.
func CheckHost(h *v1.Host) error {
	f := begin(KindHost, h.GetMeta(), false)
	s := h.GetSpec()
	if !ValidName(s.GetSite()) {
		f.Add("spec.site", "SITE_MISSING", "a host is in a site; %q is not the name of one", s.GetSite())
	}
	if o := s.GetCpuOvercommit(); o != 0 && !(o >= 0.1 && o <= 64) {
		f.Add("spec.cpu_overcommit", "OUT_OF_RANGE", "%v; must be 0.1 to 64, or 0 for the default", o)
	}
	if r := s.GetMemoryReserveBytes(); r < 0 || r > 1<<44 {
		f.Add("spec.memory_reserve_bytes", "OUT_OF_RANGE", "%d; must be 0 to 16 TiB", r)
	}
	checkEnums(f, s)
	checkTeams(f, s.GetTeams())
	if a := s.GetOverlayAddress(); a != "" {
		if x, err := netip.ParseAddr(a); err != nil || x.IsUnspecified() || x.IsMulticast() || x.IsLoopback() || x.Zone() != "" {
			f.Add("spec.overlay_address", "ADDRESS_INVALID", "%q is not an address by which other hosts can reach this one", a)
		}
	}
	return f.Err()
}

// CheckDatastore says what is wrong with a datastore.
func CheckDatastore(d *v1.Datastore) error {
	f := begin(KindDatastore, d.GetMeta(), false)
	if !ValidName(d.GetSpec().GetHost()) {
		f.Add("spec.host", "HOST_MISSING", "a datastore is on a host; %q is not the name of one", d.GetSpec().GetHost())
	}
	switch p := d.GetSpec().GetPath(); {
	case !path.IsAbs(p) || path.Clean(p) != p || len(p) > 1024 || strings.ContainsAny(p, "\x00\n"):
		f.Add("spec.path", "PATH_INVALID", "%q must be an absolute, clean path", p)
	case p == "/" || slices.Contains([]string{"/etc", "/usr", "/proc", "/sys", "/dev", "/boot", "/bin", "/sbin", "/lib"}, "/"+strings.SplitN(p, "/", 3)[1]):
		f.Add("spec.path", "PATH_INVALID", "%q belongs to the system; use a directory of its own such as /srv/drover", p)
	}
	return f.Err()
}

// CheckImage says what is wrong with an image.
func CheckImage(i *v1.Image) error {
	f := begin(KindImage, i.GetMeta(), false)
	s := i.GetSpec()
	checkEnums(f, s)
	checkText(f, "spec.description", s.GetDescription(), 1024)
	checkOS(f, s.GetOs())
	if s.GetUrl() != "" {
		u, err := url.Parse(s.GetUrl())
		switch {
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
			f.Add("spec.url", "URL_INVALID", "%q is not an http or https address; a file is uploaded: drover image import FILE", s.GetUrl())
		case u.User != nil:
			f.Add("spec.url", "URL_INVALID", "has a user name or password in it, and everybody who may list images would read it")
		}
	}
	if h := s.GetSha256(); h != "" {
		if b, err := hex.DecodeString(h); err != nil || len(b) != 32 || strings.ToLower(h) != h {
			f.Add("spec.sha256", "CHECKSUM_INVALID", "must be 64 characters of 0-9 and a-f")
		}
	}
	return f.Err()
}

// CheckSnapshot says what is wrong with a snapshot.
func CheckSnapshot(s *v1.Snapshot) error {
	f := begin(KindSnapshot, s.GetMeta(), true)
	checkText(f, "spec.description", s.GetSpec().GetDescription(), 1024)
	return f.Err()
}

// Roles that a user can have. Roles on projects come with projects.
var Roles = []string{"admin", "operator", "viewer"}

// CheckUser says what is wrong with a user.
func CheckUser(u *v1.User) error {
	f := begin(KindUser, u.GetMeta(), false)
	checkText(f, "spec.display_name", u.GetSpec().GetDisplayName(), 255)
	if len(u.GetSpec().GetRoles()) == 0 {
		f.Add("spec.roles", "ROLE_MISSING", "at least one is needed: %s", strings.Join(Roles, ", "))
	}
	for _, r := range u.GetSpec().GetRoles() {
		if !slices.Contains(Roles, r) {
			f.Add("spec.roles", "ROLE_UNKNOWN", "%q; there are %s", r, strings.Join(Roles, ", "))
		}
	}
	return f.Err()
}
