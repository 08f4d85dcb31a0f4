package httpapi

import (
	"strings"

	"drover/internal/auth"
	"drover/internal/resource"
)

// call is what a procedure does to which kind of object, for permission and for the audit log.
type call struct {
	verb auth.Verb
	kind string
}

// Kinds of objects that have no resource of their own.
const (
	kindEvent    = "event"
	kindAudit    = "audit"
	kindMetric   = "metric"
	kindInstall  = "manager"
	kindBackup   = "manager_backup"
	kindJoin     = "join_token"
	kindOwnToken = "own_token"
	kindSwitch   = "switch"
)

// open procedures answer anybody: they are how one becomes known.
var open = map[string]bool{
	"AuthService/Login":   true,
	"AgentService/Enroll": true,
}

// calls has every procedure that is served, by SERVICE/METHOD.
var calls = func() map[string]call {
	t := map[string]call{
		"HostService/Get": {auth.VerbGet, resource.KindHost}, "HostService/List": {auth.VerbList, resource.KindHost}, "HostService/Watch": {auth.VerbWatch, resource.KindHost},
		"HostService/Update": {auth.VerbUpdate, resource.KindHost}, "HostService/Delete": {auth.VerbDelete, resource.KindHost},
		"HostService/CreateJoinToken":       {auth.VerbCreate, kindJoin},
		"ImageService/ListOperatingSystems": {auth.VerbList, resource.KindImage},
		"SnapshotService/Get":               {auth.VerbGet, resource.KindSnapshot},
		"SnapshotService/List":              {auth.VerbList, resource.KindSnapshot},
		"SnapshotService/Watch":             {auth.VerbWatch, resource.KindSnapshot},
		"SnapshotService/Create":            {auth.VerbOperate, resource.KindSnapshot},
		"SnapshotService/Delete":            {auth.VerbOperate, resource.KindSnapshot},
		"SnapshotService/Revert":            {auth.VerbOperate, resource.KindSnapshot},
		"TaskService/Get":                   {auth.VerbGet, resource.KindTask},
		"TaskService/List":                  {auth.VerbList, resource.KindTask},
		"TaskService/Watch":                 {auth.VerbWatch, resource.KindTask},
		"TaskService/Log":                   {auth.VerbGet, resource.KindTask},
		"TaskService/Cancel":                {auth.VerbOperate, resource.KindTask},
		"EventService/List":                 {auth.VerbList, kindEvent},
		"EventService/Watch":                {auth.VerbWatch, kindEvent},
		"AuditService/List":                 {auth.VerbList, kindAudit},
		"MetricService/Query":               {auth.VerbGet, kindMetric},
		"ManagerService/GetInfo":            {auth.VerbGet, kindInstall},
		"ManagerService/Backup":             {auth.VerbGet, kindBackup},
		"AuthService/Login":                 {auth.VerbCreate, kindOwnToken},
		"AuthService/Logout":                {auth.VerbDelete, kindOwnToken},
		"AuthService/WhoAmI":                {auth.VerbGet, kindOwnToken},
		"AuthService/ListUsers":             {auth.VerbList, resource.KindUser},
		"AuthService/CreateUser":            {auth.VerbCreate, resource.KindUser},
		"AuthService/DeleteUser":            {auth.VerbDelete, resource.KindUser},
		"AuthService/SetPassword":           {auth.VerbUpdate, kindOwnToken}, // others' need more: the handler asks
		"AuthService/ListTokens":            {auth.VerbList, kindOwnToken},   // likewise
		"AuthService/CreateToken":           {auth.VerbCreate, kindOwnToken},
		"AuthService/DeleteToken":           {auth.VerbDelete, kindOwnToken},
		"AgentService/Enroll":               {auth.VerbReport, resource.KindHost},
		"AgentService/Renew":                {auth.VerbReport, resource.KindHost},
		"AgentService/Watch":                {auth.VerbReport, resource.KindVM},
		"AgentService/Report":               {auth.VerbReport, resource.KindHost},
		"VMService/Exec":                    {auth.VerbConsole, resource.KindVM},
		"VMService/Screenshot":              {auth.VerbConsole, resource.KindVM},
		"VMService/Console":                 {auth.VerbConsole, resource.KindVM},
		"VMService/ConsoleLog":              {auth.VerbConsole, resource.KindVM},
		"PortProfileService/Preview":        {auth.VerbGet, resource.KindProfile},
		"PortService/Get":                   {auth.VerbGet, resource.KindPort},
		"PortService/List":                  {auth.VerbList, resource.KindPort},
		"PortService/Watch":                 {auth.VerbWatch, resource.KindPort},
		"PortService/Capture":               {auth.VerbConsole, resource.KindPort}, // it shows what guests say
		"PortService/Trace":                 {auth.VerbGet, resource.KindPort},
		"SwitchService/Show":                {auth.VerbGet, kindSwitch},
		"SwitchService/Table":               {auth.VerbGet, kindSwitch},
	}
	for service, kind := range map[string]string{
		"SiteService": resource.KindSite, "DatastoreService": resource.KindDatastore, "NetworkService": resource.KindNetwork, "ImageService": resource.KindImage,
		"VMService": resource.KindVM, "DiskService": resource.KindDisk, "NICService": resource.KindNIC,
		"PortProfileService": resource.KindProfile,
	} {
		t[service+"/Get"], t[service+"/List"], t[service+"/Watch"] = call{auth.VerbGet, kind}, call{auth.VerbList, kind}, call{auth.VerbWatch, kind}
		t[service+"/Create"], t[service+"/Update"], t[service+"/Delete"] = call{auth.VerbCreate, kind}, call{auth.VerbUpdate, kind}, call{auth.VerbDelete, kind}
	}
	for _, method := range []string{"Start", "Stop", "Reset", "Pause", "Resume"} {
		t["VMService/"+method] = call{auth.VerbOperate, resource.KindVM}
	}
	t["VMService/Clone"] = call{auth.VerbCreate, resource.KindVM}
	return t
}()

// lookup finds a procedure such as /drover.v1.VMService/Start. One that isn't in the table is nobody's.
func lookup(procedure string) (name string, c call, ok bool) {
	name = strings.TrimPrefix(procedure, "/drover.v1.")
	c, ok = calls[name]
	return name, c, ok
}

// changes reports whether calls of a verb are written down in the audit log.
func (c call) changes() bool {
	switch c.verb {
	case auth.VerbCreate, auth.VerbUpdate, auth.VerbDelete, auth.VerbOperate, auth.VerbConsole:
		return true
	}
	return c.kind == kindBackup
}
