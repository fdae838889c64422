import type { JSX } from "preact";

const paths = {
  overview: "M2.5 2.5h4.5v4.5h-4.5zM9 2.5h4.5v2.5H9zM9 7.5h4.5v6H9zM2.5 9.5h4.5v4h-4.5z",
  apps: "M8 2 14 5 8 8 2 5zM2 8l6 3 6-3M2 11l6 3 6-3",
  servers: "M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01",
  nodes: "M8 2.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM3.5 10.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM12.5 10.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM7.3 5.4l-3 5.2M8.7 5.4l3 5.2M5 12h6",
  events: "M1.5 8.5h3l2-5.5 3 10 2-4.5h3",
  history: "M2.8 5.2A6 6 0 1 1 2 8M2.5 2.5v3h3M8 4.8V8l2.3 1.6",
  access: "M5.5 6.5a3.5 3.5 0 1 1 0 3M8.8 8H1.5v2M4 8v1.6",
  up: "M4 10l4-4 4 4",
  down: "M4 6l4 4 4-4",
} as const;

export type IconName = keyof typeof paths;

/** Icon is a picture that says nothing that is not said beside it. */
export function Icon({ name }: { name: IconName }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={paths[name]} />
    </svg>
  );
}
