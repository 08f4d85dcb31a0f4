package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func imageKind() *kind {
	return &kind{
		name: "image", plural: "images", alias: []string{"img"}, rank: 5, empty: &v1.Image{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Image.List(ctx, r)
			return pageOf(l.GetImages(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Image.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Image.Create(ctx, &v1.CreateImageRequest{Image: o.(*v1.Image), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Image.Update(ctx, &v1.UpdateImageRequest{Image: o.(*v1.Image), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Image.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Image.Watch(ctx, r)
			return changes(s, err, (*v1.ImageChange).GetImage, f)
		},
		columns: []column{
			nameColumn("NAME"),
			mark("STATE", func(i *v1.Image) table.Cell {
				c := table.Cell{Text: unit.Word(i.GetStatus().GetPhase()), Colour: table.Yellow}
				switch i.GetStatus().GetPhase() {
				case v1.ImagePhase_IMAGE_PHASE_READY:
					c.Colour = table.Green
				case v1.ImagePhase_IMAGE_PHASE_FAILED:
					c.Text, c.Colour = "failed: "+i.GetStatus().GetMessage(), table.Red
				}
				return c
			}),
			col("KIND", func(i *v1.Image) string { return unit.Word(i.GetSpec().GetKind()) }),
			col("OS", func(i *v1.Image) string { return i.GetSpec().GetOs() }),
			num("SIZE", func(i *v1.Image) string { return unit.Size(i.GetStatus().GetSizeBytes()) }),
			num("DISK SIZE", func(i *v1.Image) string {
				if i.GetStatus().GetVirtualSizeBytes() == 0 {
					return ""
				}
				return unit.Size(i.GetStatus().GetVirtualSizeBytes())
			}),
			num("USED BY", func(i *v1.Image) string { return fmt.Sprint(i.GetStatus().GetUsedBy()) }),
			ageColumn(),
			col("DESCRIPTION", func(i *v1.Image) string { return i.GetSpec().GetDescription() }),
			wide(col("CAME AS", func(i *v1.Image) string {
				return strings.Trim(i.GetStatus().GetSourceFormat()+"."+i.GetStatus().GetSourceCompression(), ".")
			})),
			wide(col("SHA256", func(i *v1.Image) string { return i.GetStatus().GetSha256() })),
			labelsColumn(),
		},
	}
}

func taskKind() *kind {
	return &kind{
		name: "task", plural: "tasks", rank: 90, empty: &v1.Task{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Task.List(ctx, r)
			return pageOf(l.GetTasks(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Task.Get(ctx, &v1.GetRequest{Name: n}))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Task.Watch(ctx, r)
			return changes(s, err, (*v1.TaskChange).GetTask, f)
		},
		columns: []column{
			nameColumn("ID"),
			col("WHAT", func(t *v1.Task) string { return t.GetSpec().GetKind() }),
			col("TARGET", func(t *v1.Task) string {
				return strings.Trim(t.GetSpec().GetTargetKind()+" "+t.GetSpec().GetTarget(), " ")
			}),
			mark("STATE", taskState),
			num("DONE", func(t *v1.Task) string { return unit.Percent(t.GetStatus().GetProgress()) }),
			at("TOOK", func(now time.Time, t *v1.Task) string {
				start, end := t.GetStatus().GetStartTime(), t.GetStatus().GetEndTime()
				if start == nil {
					return ""
				}
				if end != nil {
					now = end.AsTime()
				}
				return unit.Age(now, start)
			}),
			ageColumn(),
			col("STEP", func(t *v1.Task) string {
				if m := t.GetStatus().GetMessage(); m != "" {
					return m
				}
				return t.GetStatus().GetStep()
			}),
			wide(col("BY", func(t *v1.Task) string { return t.GetSpec().GetPrincipal() })),
		},
	}
}

func taskState(t *v1.Task) table.Cell {
	c := table.Cell{Text: unit.Word(t.GetStatus().GetState()), Colour: table.Yellow}
	switch t.GetStatus().GetState() {
	case v1.TaskState_TASK_STATE_SUCCEEDED:
		c.Colour = table.Green
	case v1.TaskState_TASK_STATE_FAILED:
		c.Colour = table.Red
	case v1.TaskState_TASK_STATE_CANCELLED:
		c.Colour = table.Dim
	}
	return c
}

func userKind() *kind {
	return &kind{
		name: "user", plural: "users", rank: 6, empty: &v1.User{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Auth.ListUsers(ctx, r)
			return pageOf(l.GetUsers(), l, err)
		},
		get: byList(func(ctx context.Context, c *client.Client, r *v1.ListRequest) ([]*v1.User, error) {
			l, err := c.Auth.ListUsers(ctx, r)
			return l.GetUsers(), err
		}, "user"),
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Auth.DeleteUser(ctx, r))
		},
		columns: []column{
			nameColumn("NAME"),
			col("ROLES", func(u *v1.User) string { return strings.Join(u.GetSpec().GetRoles(), ",") }),
			mark("STATE", func(u *v1.User) table.Cell {
				if u.GetSpec().GetDisabled() {
					return table.Cell{Text: "disabled", Colour: table.Red}
				}
				return table.Cell{Text: "enabled", Colour: table.Green}
			}),
			ageColumn(),
			col("DISPLAY NAME", func(u *v1.User) string { return u.GetSpec().GetDisplayName() }),
			labelsColumn(),
		},
	}
}

func tokenKind() *kind {
	return &kind{
		name: "token", plural: "tokens", rank: 91, empty: &v1.Token{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Auth.ListTokens(ctx, r)
			return pageOf(l.GetTokens(), l, err)
		},
		get: byList(func(ctx context.Context, c *client.Client, r *v1.ListRequest) ([]*v1.Token, error) {
			l, err := c.Auth.ListTokens(ctx, r)
			return l.GetTokens(), err
		}, "token"),
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Auth.DeleteToken(ctx, r))
		},
		columns: []column{
			nameColumn("ID"),
			col("USER", func(t *v1.Token) string { return t.GetSpec().GetUser() }),
			col("FOR", func(t *v1.Token) string {
				if t.GetSpec().GetSession() {
					return "log-in"
				}
				return t.GetSpec().GetDescription()
			}),
			col("SCOPES", func(t *v1.Token) string { return strings.Join(t.GetSpec().GetScopes(), ",") }),
			at("EXPIRES IN", func(now time.Time, t *v1.Token) string {
				if x := t.GetSpec().GetExpireTime(); x != nil {
					return unit.Span(x.AsTime().Sub(now))
				}
				return "never"
			}),
			at("LAST USED", func(now time.Time, t *v1.Token) string { return unit.Age(now, t.GetStatus().GetLastUsed()) }),
			wide(col("LAST FROM", func(t *v1.Token) string { return t.GetStatus().GetLastSource() })),
			wide(ageColumn()),
		},
	}
}

// byList gets one object of a kind that has no call of its own for that.
func byList[T object](list func(context.Context, *client.Client, *v1.ListRequest) ([]T, error), what string) func(context.Context, *client.Client, string) (object, error) {
	return func(ctx context.Context, c *client.Client, name string) (object, error) {
		items, err := list(ctx, c, &v1.ListRequest{Filter: "meta.name = " + quote(name), PageSize: 1})
		if err != nil {
			return nil, err
		}
		if len(items) == 0 {
			return nil, &failure{code: exitNotFound, err: fmt.Errorf("%s %q: not found", what, name)}
		}
		return items[0], nil
	}
}

// quote makes a text a value of a filter.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// maskOf is a field mask of paths.
func maskOf(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }
