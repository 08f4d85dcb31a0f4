package qmp

// Names of the events that Drover acts on.
const (
	EventShutdown               = "SHUTDOWN"
	EventReset                  = "RESET"
	EventStop                   = "STOP"
	EventResume                 = "RESUME"
	EventPowerdown              = "POWERDOWN"
	EventSuspend                = "SUSPEND"
	EventWakeup                 = "WAKEUP"
	EventBlockIOError           = "BLOCK_IO_ERROR"
	EventBlockJobCompleted      = "BLOCK_JOB_COMPLETED"
	EventBlockJobCancelled      = "BLOCK_JOB_CANCELLED"
	EventBlockJobError          = "BLOCK_JOB_ERROR"
	EventBlockJobReady          = "BLOCK_JOB_READY"
	EventBlockJobPending        = "BLOCK_JOB_PENDING"
	EventBlockExportDeleted     = "BLOCK_EXPORT_DELETED"
	EventBlockWriteThreshold    = "BLOCK_WRITE_THRESHOLD"
	EventJobStatusChange        = "JOB_STATUS_CHANGE"
	EventDeviceDeleted          = "DEVICE_DELETED"
	EventDeviceUnplugGuestError = "DEVICE_UNPLUG_GUEST_ERROR"
	EventDeviceTrayMoved        = "DEVICE_TRAY_MOVED"
	EventMigration              = "MIGRATION"
	EventMigrationPass          = "MIGRATION_PASS"
	EventGuestPanicked          = "GUEST_PANICKED"
	EventRTCChange              = "RTC_CHANGE"
	EventNICRXFilterChanged     = "NIC_RX_FILTER_CHANGED"
	EventBalloonChange          = "BALLOON_CHANGE"
	EventVSerialChange          = "VSERPORT_CHANGE"
	EventWatchdog               = "WATCHDOG"
)

// ShutdownData of EventShutdown.
type ShutdownData struct {
	// Guest: the guest asked for it, as opposed to us or a signal.
	Guest bool `json:"guest"`
	// Reason: "guest-shutdown", "guest-reset" (with -no-reboot), "guest-panic",
	// "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-error",
	// "host-ui", "subsystem-reset".
	Reason string `json:"reason"`
}

// ResetData of EventReset.
type ResetData = ShutdownData

// BlockIOErrorData of EventBlockIOError.
type BlockIOErrorData struct {
	Device    string `json:"device"`
	NodeName  string `json:"node-name"`
	Operation string `json:"operation"` // "read" or "write"
	Action    string `json:"action"`    // "report", "ignore" or "stop": the VM is paused
	NoSpace   bool   `json:"nospace"`
	Reason    string `json:"reason"`
}

// BlockJobData of the EventBlockJob… events. BLOCK_JOB_PENDING has its id in
// "id" instead of "device".
type BlockJobData struct {
	Type      string `json:"type"`
	Device    string `json:"device"`
	ID        string `json:"id"`
	Len       int64  `json:"len"`
	Offset    int64  `json:"offset"`
	Speed     int64  `json:"speed"`
	Error     string `json:"error"`     // BLOCK_JOB_COMPLETED
	Operation string `json:"operation"` // BLOCK_JOB_ERROR
	Action    string `json:"action"`    // BLOCK_JOB_ERROR
}

// Job is the id of the event's job.
func (d BlockJobData) Job() string {
	if d.Device != "" {
		return d.Device
	}
	return d.ID
}

// JobStatusData of EventJobStatusChange.
type JobStatusData struct {
	ID     string `json:"id"`
	Status string `json:"status"`
}

// DeviceData of EventDeviceDeleted and EventDeviceUnplugGuestError.
type DeviceData struct {
	// Device is the id; empty for devices without one, such as a device's own bus.
	Device string `json:"device"`
	Path   string `json:"path"`
}

// MigrationData of EventMigration.
type MigrationData struct {
	Status string `json:"status"`
}

// GuestPanickedData of EventGuestPanicked.
type GuestPanickedData struct {
	Action string `json:"action"` // "pause", "poweroff", "run"
}

// RTCChangeData of EventRTCChange.
type RTCChangeData struct {
	Offset int64 `json:"offset"` // seconds between the RTC's base and the guest's time
}

// NICData of EventNICRXFilterChanged.
type NICData struct {
	Name string `json:"name"` // the device's id
	Path string `json:"path"`
}

// TrayData of EventDeviceTrayMoved.
type TrayData struct {
	ID   string `json:"id"`
	Open bool   `json:"tray-open"`
}

// VSerialData of EventVSerialChange: the guest opened or closed a port, which
// for the agent's port means that the agent came or went.
type VSerialData struct {
	ID   string `json:"id"`
	Open bool   `json:"open"`
}

// BalloonData of EventBalloonChange.
type BalloonData struct {
	Actual int64 `json:"actual"` // bytes
}

// WriteThresholdData of EventBlockWriteThreshold.
type WriteThresholdData struct {
	NodeName string `json:"node-name"`
}
