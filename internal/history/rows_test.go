package history

import (
	"context"
	"database/sql"
)

func rowCounts(ctx context.Context, raw, five *int) func(*sql.DB) error {
	return func(r *sql.DB) error {
		if err := r.QueryRowContext(ctx, `SELECT count(*) FROM sample_raw`).Scan(raw); err != nil {
			return err
		}
		return r.QueryRowContext(ctx, `SELECT count(*) FROM sample_5m`).Scan(five)
	}
}
