package qmp

import "context"

// Capability of migration, on or off.
type Capability struct {
	Name  string `json:"capability"`
	State bool   `json:"state"`
}

// MigrateSetCapabilities switches capabilities; those not named stay.
func (c *Client) MigrateSetCapabilities(ctx context.Context, caps ...Capability) error {
	return c.Execute(ctx, "migrate-set-capabilities", obj{"capabilities": caps}, nil)
}

// QueryMigrateCapabilities lists the capabilities.
func (c *Client) QueryMigrateCapabilities(ctx context.Context) ([]Capability, error) {
	var out []Capability
	err := c.Execute(ctx, "query-migrate-capabilities", nil, &out)
	return out, err
}

// MigrateSetParameters sets parameters (MigrateSetParameters in the schema);
// those not named stay.
func (c *Client) MigrateSetParameters(ctx context.Context, params any) error {
	return c.Execute(ctx, "migrate-set-parameters", params, nil)
}

// QueryMigrateParameters reads the parameters into out.
func (c *Client) QueryMigrateParameters(ctx context.Context, out any) error {
	return c.Execute(ctx, "query-migrate-parameters", nil, out)
}

// Migrate starts to send the VM to uri ("fd:NAME" after GetFD, "unix:PATH", …)
// and returns at once. Watch EventMigration with the capability "events" on.
func (c *Client) Migrate(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate", obj{"uri": uri}, nil)
}

// MigrateIncoming starts to listen, in a QEMU started with -incoming defer.
func (c *Client) MigrateIncoming(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate-incoming", obj{"uri": uri}, nil)
}

// MigrateCancel cancels a migration; the source runs on.
func (c *Client) MigrateCancel(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}

// MigrateContinue goes on from "pre-switchover" (capability
// pause-before-switchover).
func (c *Client) MigrateContinue(ctx context.Context, state string) error {
	return c.Execute(ctx, "migrate-continue", obj{"state": state}, nil)
}

// MigrateStartPostcopy switches a running migration to postcopy.
func (c *Client) MigrateStartPostcopy(ctx context.Context) error {
	return c.Execute(ctx, "migrate-start-postcopy", nil, nil)
}

// Migration states that callers branch on.
const (
	MigrationActive        = "active"
	MigrationPreSwitchover = "pre-switchover"
	MigrationDevice        = "device"
	MigrationPostcopy      = "postcopy-active"
	MigrationCompleted     = "completed"
	MigrationFailed        = "failed"
	MigrationCancelled     = "cancelled"
)

// MigrationInfo is the state of the present or last migration.
type MigrationInfo struct {
	// Status is empty when there never was one.
	Status           string `json:"status"`
	Error            string `json:"error-desc"`
	TotalTime        int64  `json:"total-time"`        // ms
	Downtime         int64  `json:"downtime"`          // ms, when completed
	ExpectedDowntime int64  `json:"expected-downtime"` // ms
	SetupTime        int64  `json:"setup-time"`        // ms
	RAM              struct {
		Transferred    int64   `json:"transferred"` // bytes
		Remaining      int64   `json:"remaining"`   // bytes
		Total          int64   `json:"total"`       // bytes
		Duplicate      int64   `json:"duplicate"`   // zero pages
		Normal         int64   `json:"normal"`      // pages
		DirtyPagesRate int64   `json:"dirty-pages-rate"`
		PageSize       int64   `json:"page-size"`
		Mbps           float64 `json:"mbps"`
		DirtySyncCount int64   `json:"dirty-sync-count"`
		PostcopyReqs   int64   `json:"postcopy-requests"`
	} `json:"ram"`
	CPUThrottle int64 `json:"cpu-throttle-percentage"`
}

// QueryMigrate reads the state of the migration.
func (c *Client) QueryMigrate(ctx context.Context) (MigrationInfo, error) {
	var out MigrationInfo
	err := c.Execute(ctx, "query-migrate", nil, &out)
	return out, err
}
