package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap gives etcd a logger that writes to l, from level on.
func newZap(l *slog.Logger, level slog.Level) *zap.Logger {
	return zap.New(&slogCore{h: l.Handler().WithAttrs([]slog.Attr{slog.String("component", "etcd")}), level: level})
}

// slogCore is a zap core over a slog handler.
type slogCore struct {
	h     slog.Handler
	level slog.Level
}

func toSlog(l zapcore.Level) slog.Level {
	switch {
	case l < zapcore.InfoLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return toSlog(l) >= c.level && c.h.Enabled(context.Background(), toSlog(l))
}

func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{h: c.h.WithAttrs(attrs(f)), level: c.level}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	r := slog.NewRecord(e.Time, toSlog(e.Level), e.Message, 0)
	r.AddAttrs(attrs(f)...)
	return c.h.Handle(context.Background(), r)
}

func (c *slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
