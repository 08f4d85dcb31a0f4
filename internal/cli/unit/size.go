package unit

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// SizeHelp says what ParseSize takes, for flags and errors.
const SizeHelp = "a number with K, M, G, T or P (powers of 1024; also KiB, GiB, …), such as 512M or 1.5GiB"

// ErrSize is wrapped by what ParseSize refuses.
var ErrSize = errors.New("not a size: give " + SizeHelp)

// ParseSize reads a size in bytes: "512M", "2GiB", "1.5T", "4096". Units are powers of 1024, upper or lower case, with an
// optional "B" or "iB".
func ParseSize(s string) (int64, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	suffix := strings.ToLower(text[len(digits):])
	digits = strings.TrimSpace(digits)
	if digits == "" || strings.Trim(digits, "0123456789.") != "" || strings.Count(digits, ".") > 1 || len(digits) > 30 {
		return 0, fmt.Errorf("%q is %w", s, ErrSize)
	}
	if suffix != "b" {
		suffix = strings.TrimSuffix(strings.TrimSuffix(suffix, "b"), "i")
	}
	var shift uint
	switch suffix {
	case "", "b":
	case "k":
		shift = 10
	case "m":
		shift = 20
	case "g":
		shift = 30
	case "t":
		shift = 40
	case "p":
		shift = 50
	default:
		return 0, fmt.Errorf("%q is %w", s, ErrSize)
	}
	r, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, fmt.Errorf("%q is %w", s, ErrSize)
	}
	r.Mul(r, new(big.Rat).SetInt64(1<<shift))
	if !r.IsInt() {
		return 0, fmt.Errorf("%q is not a whole number of bytes", s)
	}
	if !r.Num().IsInt64() {
		return 0, fmt.Errorf("%q is more than 8 EiB, which nothing here takes", s)
	}
	return r.Num().Int64(), nil
}

var prefixes = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Size writes bytes with three digits or so: "512 MiB", "1.5 GiB".
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-max(n, -math.MaxInt64))
	}
	v, i := float64(n), 0
	for v >= 1023.95 && i < len(prefixes)-1 {
		v /= 1024
		i++
	}
	if i == 0 || v >= 99.95 || v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', 0, 64) + " " + prefixes[i]
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + prefixes[i]
}

// Rate writes bytes a second.
func Rate(v float64) string {
	if math.IsNaN(v) || v < 0 || v > math.MaxInt64/2 {
		return "-"
	}
	return Size(int64(v)) + "/s"
}

// Percent writes a ratio.
func Percent(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	return strconv.FormatFloat(v*100, 'f', 0, 64) + "%"
}
