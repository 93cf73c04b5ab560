/** Drawings in a box of 24 by 24, as strokes. */
const PATHS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  settings: "M4 8h8M16 8h4M4 16h4M12 16h8M14 6v4M10 14v4",
  keyboard: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
  more: "M5.4 12a.6.6 0 1 0 1.2 0 .6.6 0 1 0-1.2 0zM11.4 12a.6.6 0 1 0 1.2 0 .6.6 0 1 0-1.2 0zM17.4 12a.6.6 0 1 0 1.2 0 .6.6 0 1 0-1.2 0z",
  previous: "M14 7l-5 5 5 5",
  next: "M10 7l5 5-5 5",
  down: "M12 5v14M6 13l6 6 6-6",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  light:
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v1M12 20v1M3 12h1M20 12h1M5.6 5.6l.7.7M17.7 17.7l.7.7M5.6 18.4l.7-.7M17.7 6.3l.7-.7",
  dark: "M19 14a8 8 0 1 1-9-9 6 6 0 0 0 9 9z",
  close: "M6 6l12 12M18 6L6 18",
};

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** A button that is a drawing; `label` is its name for those who do not see it, and its tooltip. */
export function IconButton({
  name,
  label,
  ...rest
}: { name: keyof typeof PATHS; label: string } & preact.ButtonHTMLAttributes) {
  return (
    <button type="button" class="icon-button" aria-label={label} title={label} {...rest}>
      <Icon name={name} />
    </button>
  );
}
