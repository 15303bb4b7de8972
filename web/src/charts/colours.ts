/** Colour ramps for a canvas, from the tokens of the theme. */

/** Return a colour of the theme. */
export function token(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

type Lab = [number, number, number];

function linear(value: number): number {
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

function gamma(value: number): number {
  const clamped = Math.min(Math.max(value, 0), 1);
  return clamped <= 0.0031308 ? clamped * 12.92 : 1.055 * clamped ** (1 / 2.4) - 0.055;
}

function toOklab(hex: string): Lab {
  const [r = 0, g = 0, b = 0] = [1, 3, 5].map((at) => linear(parseInt(hex.slice(at, at + 2), 16) / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromOklab([light, a, b]: Lab): string {
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const rgb = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return `rgb(${rgb.map((each) => Math.round(gamma(each) * 255)).join(" ")})`;
}

/** Return `steps` colours between two colours of the theme, at equal distances for the eye (OKLab). */
export function ramp(low: string, high: string, steps = 24): string[] {
  const from = toOklab(token(low));
  const to = toOklab(token(high));
  return Array.from({ length: steps }, (_, index) => {
    const share = index / (steps - 1);
    return fromOklab(from.map((each, at) => each + ((to[at] as number) - each) * share) as Lab);
  });
}

/** Return the colour of a count on a logarithmic scale up to `most`. */
export function shade(colours: string[], count: number, most: number): string {
  const share = most > 1 ? Math.log(Math.max(count, 1)) / Math.log(most) : 1;
  return colours[Math.round(Math.min(share, 1) * (colours.length - 1))] as string;
}
